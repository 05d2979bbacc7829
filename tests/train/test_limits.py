"""Limits on forgetting: none changes nothing, a strong one leaves the model near its base, and replay is planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.data import Example
from edgeft.contract.tensors import TensorFile
from edgeft.train.mixture import Task, count, load_replay
from edgeft.train.plan import add_replay, plan_batches
from edgeft.train.settings import TrainSettings, split_replay
from edgeft.train.tasks import TaskSpec
from tests.conftest import edgeft, lines, train_run

TEXTS = [{"text": f"the {color} house is in the large tree and {number} {thing} sees the place"}
         for color in ("red", "green", "blue") for thing in ("cat", "dog", "bird", "house")
         for number in ("one", "two")]
STEPS = ("--max-steps", 16, "--lr", 0.02, "--holdout", 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lines(tmp_path / "source.jsonl", TEXTS * 4)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return lines(tmp_path / "probe.jsonl", [{"text": item["text"] + " in the place"} for item in TEXTS])


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "edgeft.json").read_text())


def weights(folder: Path) -> dict[str, np.ndarray]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    file = TensorFile(folder / name)
    return {key: np.array(file[key]) for key in file}


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("method", "limit"), [("full", "--kl-to-base"), ("lora", "--kl-to-base"),
                                               ("prefix_tuning", "--kl-to-base"), ("full", "--l2-to-start")])
def test_no_weight_is_the_same_run_and_a_large_one_stays_near_the_base(
        base: Path, data: Path, probe: Path, tmp_path: Path, method: str, limit: str) -> None:
    runs = {}
    for weight in (None, 0, 300):
        given = () if weight is None else (limit, weight)
        runs[weight] = train_run(tmp_path / str(weight), base, data, *STEPS, "--probe", probe, *given, method=method)
    assert same(runs[None], runs[0])
    assert not same(runs[None], runs[300])
    kl = {weight: record(run)["forgetting"]["kl"] for weight, run in runs.items()}
    assert kl[0] == kl[None]
    assert kl[300] < 0.5 * kl[None], kl
    steps = [json.loads(line) for line in (runs[300] / "metrics.jsonl").read_text().splitlines()]
    assert ("kl" if limit == "--kl-to-base" else "distance") in steps[-1]
    assert record(runs[300])["settings"][limit.strip("-").replace("-", "_")] == 300


def test_the_gradient_of_the_distance_is_autograds() -> None:
    import torch

    from edgeft.train.limits import Limits

    start = torch.randn(5)
    parameter = torch.nn.Parameter(start + torch.randn(5))
    limits = Limits.__new__(Limits)
    limits.settings, limits.start = TrainSettings(l2_to_start=0.3), [(parameter, start)]
    (parameter.sum() + 0.3 * (parameter - start).square().sum()).backward()
    wanted, parameter.grad = parameter.grad, None
    parameter.sum().backward()
    limits.pull()
    assert torch.allclose(parameter.grad, wanted)


def test_interpolation_goes_back_that_part_of_the_way(base: Path, data: Path, tmp_path: Path) -> None:
    whole, half = (train_run(tmp_path / str(part), base, data, *STEPS, "--interpolate", part, method="full")
                   for part in (1, 0.5))
    assert same(whole, train_run(tmp_path / "plain", base, data, *STEPS, method="full"))
    start, end, found = weights(base), weights(whole), weights(half)
    for name in start:
        np.testing.assert_allclose(found[name], (start[name] + end[name]) / 2, atol=1e-6)
    assert any(not np.allclose(found[name], end[name], atol=1e-4) for name in start)


@pytest.mark.parametrize("limit", ["--l2-to-start", "--interpolate"])
def test_a_resumed_run_keeps_its_limit(base: Path, data: Path, tmp_path: Path, limit: str) -> None:
    """What the limit is measured from is the base, not the checkpoint."""
    from edgeft.train import loop

    options = (*STEPS, limit, 0.5, "--save-every", 5)
    whole = train_run(tmp_path / "whole", base, data, *options, method="full")
    saved = loop.checkpoint.save

    def stop(*arguments: Any) -> None:
        saved(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.checkpoint, "save", stop)
        with pytest.raises(AssertionError):
            train_run(tmp_path / "broken", base, data, *options, method="full")
    edgeft("train", "full", "--resume", "--out", tmp_path / "broken")
    assert same(whole, tmp_path / "broken")
    assert record(whole)["forgetting"] == record(tmp_path / "broken")["forgetting"]


def test_limits_that_a_method_cannot_keep_are_refused(base: Path, make_base: Callable[..., Path], data: Path,
                                                      source: Path, tmp_path: Path) -> None:
    labels = lines(tmp_path / "labels.jsonl", [{"text": f"the {word} cat", "label": word} for word in ("red", "blue")])
    new = make_base(weights=False)
    for method, where, what, given, said in [
            ("lora", base, data, ("--l2-to-start", 1), "--l2-to-start: lora leaves the base's weights as they are"),
            ("prefix_tuning", base, data, ("--interpolate", 0.5), "--interpolate: prefix_tuning leaves"),
            ("lora", base, labels, ("--kl-to-base", 1), "--kl-to-base: is for language models"),
            ("full", new, data, ("--kl-to-base", 1), "--kl-to-base: the base has no weights yet"),
            ("full", new, data, ("--replay", f"{source}:0.1"), "so it knew no text"),
            ("lora", base, labels, ("--replay", f"{source}:0.1"), "a classifier has none"),
            ("lora", base, data, ("--replay", f"{source}:0.1", "--probe", source), "are the same lines"),
            ("lora", base, data, ("--replay", tmp_path / "none:0.1"), "cannot be read")]:
        done = edgeft("train", method, "--base", where, "--data", what, "--out", tmp_path / "run", *given, check=False)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("given", "said"), [
    ({"replay": "f.jsonl"}, "FILE:SHARE"), ({"replay": "f.jsonl:1"}, "between 0 and 1"), ({"replay": ":0.1"}, "FILE"),
    ({"kl_to_base": -1.0}, "not be negative"), ({"interpolate": 0.0}, "above 0"), ({"interpolate": 1.5}, "at most 1"),
    ({"stop_at_loss": 2.0}, "--eval-every")])
def test_settings_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainSettings(**given)


def test_the_share_stands_behind_the_last_colon() -> None:
    assert split_replay("a:b/c.jsonl:0.05") == ("a:b/c.jsonl", 0.05)
    assert split_replay("") == ("", 0.0)


def task(size: int, tokens: int, share: float = 0.0) -> Task:
    return Task(TaskSpec("t", "t.jsonl"), "text", [Example(list(range(tokens + 1)), [False] + [True] * tokens)] * size,
                replay=share)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_replay_has_its_share_of_the_tokens_all_along(share: float) -> None:
    tasks = [task(400, 10), task(7, 30, share)]
    settings = TrainSettings(batch_size=8, epochs=3)
    plain = plan_batches(tasks[:1], settings)
    mixed = add_replay(plain, tasks, settings)
    assert [[ref for ref in batch if ref[0] == 0] for batch in mixed] == plain  # the tasks' own batches stay
    drawn = 0
    for done, batch in enumerate(mixed, 1):
        drawn += 30 * sum(owner == 1 for owner, _ in batch)
        assert abs(drawn - share / (1 - share) * 80 * done) <= 15.001  # half a block
    assert drawn / (drawn + 12_000) == pytest.approx(share, abs=0.002)
    assert mixed == add_replay(plain, tasks, settings)
    assert add_replay(plain, tasks[:1], settings) == plain


def test_replay_comes_in_blocks_like_the_tasks_examples(base: Path, source: Path) -> None:
    from edgeft.train.base import load_base

    loaded = load_base(str(base))
    given: dict[str, Any] = {"separator": "\n", "max_length": 200, "holdout": 0.0}
    short, long = (load_replay((str(source), 0.1), [task(3, tokens)], loaded, **given) for tokens in (20, 120))
    assert {len(example.ids) for example in short.train[:-1]} == {64}
    assert {len(example.ids) for example in long.train[:-1]} == {121}
    assert count(long.train) == pytest.approx(count(short.train), rel=0.02)
    assert short.train[0].task is None


def test_replay_is_shown_by_itself_and_changes_no_prompt(base: Path, data: Path, source: Path, probe: Path,
                                                         tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-steps", 30, "--lr", 0.02, "--holdout", 0.1, "--probe", probe)
    plain, mixed = (train_run(tmp_path / name, base, data, *options, *given, method="full")
                    for name, given in (("plain", ()), ("mixed", ("--replay", f"{source}:0.3"))))
    printed = capsys.readouterr()
    assert "30.0% of all tokens" in printed.err
    found = record(mixed)
    assert list(found["metrics"]["eval"]) == ["pairs", "replay"]
    assert found["data"][1]["replay"] == 0.3
    assert found["data"][1]["drawn"]["share_of_tokens"] == pytest.approx(0.3, abs=0.02)
    assert found["prompt"] == record(plain)["prompt"] == {"kind": "pair", "separator": "\n"}
    assert found["samples"] == record(plain)["samples"]
    assert found["metrics"]["eval"]["replay"]["loss"] < found["metrics"]["eval_base"]["replay"]["loss"]
    assert found["forgetting"]["forgetting"] < record(plain)["forgetting"]["forgetting"]


def test_training_stops_at_the_loss_that_was_asked_for(base: Path, data: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-steps", 60, "--lr", 0.02, "--eval-data", data, "--eval-every", 5)
    whole = train_run(tmp_path / "whole", base, data, *options)
    losses = [found["eval"]["sets"]["pairs"]["loss"] for found in
              map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()) if "eval" in found]
    target = losses[4]
    wanted = next(index for index, loss in enumerate(losses) if loss <= target)
    capsys.readouterr()
    found = record(train_run(tmp_path / "cut", base, data, *options, "--stop-at-loss", target))
    assert f"stopped at step {5 * wanted + 5} of 60" in capsys.readouterr().err
    assert found["metrics"]["steps"] == 5 * wanted + 5
    assert found["metrics"]["eval"]["pairs"]["loss"] == pytest.approx(losses[wanted], abs=1e-6)
    assert record(whole)["metrics"]["steps"] == 60
