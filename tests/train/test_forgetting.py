"""Forgetting in torch: KL, losses and pairs beside the base, and the base itself, whatever the method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeft.contract.data import Example
from edgeft.train.base import load_base
from edgeft.train.forgetting import by_line, divergence, sample_sizes
from edgeft.train.held_out import probe_lines
from edgeft.train.objective import Objective
from edgeft.train.reference import Reference, own_samples
from tests.conftest import edgeft, lines, train_run

TEXTS = [{"text": f"the {color} house is in the large tree and one {thing} sees it"}
         for color in ("red", "green", "blue") for thing in ("cat", "dog", "bird")]
PAIRS = [{"good": f"the {color} {thing} runs", "bad": f"the {thing} {color} runs"}
         for color in ("red", "green", "blue") for thing in ("cat", "dog", "bird", "house", "tree")]
EXAMPLES = [Example([1, *range(20, 20 + size)], [False] + [True] * size) for size in (3, 7, 5)]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return lines(tmp_path / "probe.jsonl", TEXTS)


@pytest.fixture
def grammar(tmp_path: Path) -> Path:
    return lines(tmp_path / "pairs.jsonl", PAIRS)


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "edgeft.json").read_text())


def test_the_divergence_is_torchs_own() -> None:
    base, tuned = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = torch.nn.functional.kl_div(tuned.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True)
    assert torch.allclose(divergence(base, tuned), wanted.sum(-1), atol=1e-6)
    assert torch.equal(divergence(base, base), torch.zeros(5))
    assert not torch.allclose(divergence(tuned, base), divergence(base, tuned))


def test_sums_are_by_line_however_passes_are_cut(base: Path, make_base: Callable[..., Path]) -> None:
    tuned, other = load_base(str(base)), make_base(seed=1)
    objective = Objective(tuned.model, tuned.model.get_output_embeddings())
    reference = Reference(tuned, tuned.model, str(other), "", None)
    grouped = [EXAMPLES[:2], EXAMPLES[2:]]
    whole, small = (by_line(objective, reference, grouped, limit) for limit in (8192, 9))
    assert whole.tokens == [10, 5]
    for name in ("tuned", "base", "kl"):
        assert getattr(whole, name) == pytest.approx(getattr(small, name), rel=1e-5)
    alone = [float(objective([example]).detach()) for example in EXAMPLES]
    assert whole.tuned == pytest.approx([alone[0] + alone[1], alone[2]], rel=1e-5)
    assert min(whole.kl) > 0.01
    same = by_line(objective, Reference(tuned, tuned.model, str(base), tuned.fingerprint, None), grouped, 8192)
    assert same.base == same.tuned
    assert max(same.kl) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("method", "options"), [
    ("lora", ()), ("lora", ("--init", "pissa")), ("lora", ("--device", "cpu-x86_64")), ("prompt_tuning", ()),
    ("prefix_tuning", ()), ("ia3", ()), ("full", ())],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "plain")
def test_a_run_tells_what_it_forgot_and_eval_says_the_same(base: Path, data: Path, probe: Path, grammar: Path,
                                                          tmp_path: Path, method: str, options: tuple) -> None:
    from edgeft.plugins import host
    from edgeft.train.evaluate import evaluate_run

    run = train_run(tmp_path / "run", base, data, "--max-steps", 12, "--lr", 0.02, "--probe", probe, "--pairs", grammar,
                    "--holdout", 0, *options, method=method)
    found = record(run)["forgetting"]
    assert found["interval"][0] < found["forgetting"] < found["interval"][1]
    assert found["forgetting"] == pytest.approx(found["tuned_loss"] - found["base_loss"])
    assert found["kl"] > 1e-3
    assert found["own_samples"] is None
    again = evaluate_run(run, None, probe, None, host(), None, grammar)
    assert again["forgetting"] == pytest.approx(found["forgetting"], abs=1e-4)
    assert again["interval"] == pytest.approx(found["interval"], abs=1e-4)
    assert again["kl"] == pytest.approx(found["kl"], abs=1e-4)
    for name in ("accuracy", "base_accuracy"):  # one near tie may fall otherwise
        assert again["pairs"][name] == pytest.approx(found["pairs"][name], abs=0.07)
    if "--device" not in options:
        bare = evaluate_run(base, None, None, None, host(), None, grammar)["pairs"]
        assert bare["accuracy"] == pytest.approx(found["pairs"]["base_accuracy"], abs=0.07)
        assert bare["base_accuracy"] is None


def test_without_a_probe_the_base_writes_its_own(base: Path, data: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for steps in (1, 30, 30):
        run = train_run(tmp_path / str(len(found)), base, data, "--max-steps", steps, "--lr", 0.02)
        found.append(record(run)["forgetting"])
        assert "texts that the base wrote itself" in capsys.readouterr().out
    assert found[0]["forgetting"] is None
    assert found[0]["probe"] is None
    own = [item["own_samples"] for item in found]
    assert own[0]["samples"] == 8
    assert 0 <= own[0]["kl"] < 0.5 * own[1]["kl"]
    assert own[1] == own[2]


def test_own_samples_are_the_bases_and_end_where_it_ends_them(make_base: Callable[..., Path]) -> None:
    """A base that knows but one continuation writes that one; its end token is the last."""
    base = load_base(str(make_base(tie_word_embeddings=False)))
    reference = Reference(base, base.model, base.id, base.fingerprint, None)
    drawn = own_samples(base, reference, 4, 12, 0)
    assert [len(example.ids) for example in drawn if base.eos not in example.ids] == [12] * sum(
        base.eos not in example.ids for example in drawn)
    assert len({tuple(example.ids) for example in drawn}) == 4
    assert all(example.ids[0] == 1 and example.mask == [False] + [True] * (len(example.ids) - 1) for example in drawn)
    assert drawn == own_samples(base, reference, 4, 12, 0) != own_samples(base, reference, 4, 12, 1)
    with torch.no_grad():  # every hidden state now points at the end token
        reference._copy.lm_head.weight.zero_()
        reference._copy.lm_head.register_forward_hook(
            lambda module, inputs, out: out + 50 * torch.nn.functional.one_hot(torch.tensor(2), out.shape[-1]))
    assert [example.ids for example in own_samples(base, reference, 2, 12, 0)] == [[1, 2], [1, 2]]


def test_samples_cost_little_beside_the_training() -> None:
    assert sample_sizes(100, 512) == (8, 32)
    assert sample_sizes(10**7, 512) == (32, 128)
    assert sample_sizes(10**7, 64) == (64, 64)
    for tokens in (20_000, 60_000, 150_000):
        samples, length = sample_sizes(tokens, 512)
        assert samples * length <= 0.02 * tokens


def test_the_switched_off_adapter_is_the_base_and_learns_on(base: Path) -> None:
    from edgeft.plugins import host
    from edgeft.train.checkpoint import trainable

    method = host().method("lora")
    plain, tuned = load_base(str(base)), load_base(str(base))
    model = method.attach(tuned.model, method.Options())
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05)
    learns = list(trainable(model))
    reference = Reference(tuned, model, "a folder that is not there", tuned.fingerprint, None)
    wanted = Objective(plain.model, plain.model.get_output_embeddings()).logits(EXAMPLES)[0]
    assert torch.equal(reference.logits(EXAMPLES)[0], wanted)
    assert not torch.allclose(Objective(model, tuned.model.get_output_embeddings()).logits(EXAMPLES)[0], wanted,
                              atol=1e-2)
    assert list(trainable(model)) == learns


def test_a_soft_prompt_leaves_room_for_the_probe(make_base: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    """gpt2 has no position beyond its context: a window of all of it would not fit behind 20 virtual tokens."""
    base = make_base("gpt2", max_position_embeddings=48)
    probe = lines(tmp_path / "probe.jsonl", [{"text": " ".join(["the red cat runs"] * 20)}])
    run = train_run(tmp_path / "run", base, data, "--max-steps", 1, "--probe", probe, "--max-length", 28,
                    method="prompt_tuning")
    loaded = load_base(str(base))
    assert max(len(part.ids) for part in probe_lines(probe, loaded, 20)[0]) == 28
    assert max(len(part.ids) for part in probe_lines(probe, loaded)[0]) == 48
    assert record(run)["forgetting"]["tokens"] == sum(sum(part.mask) for part in probe_lines(probe, loaded, 20)[0])


def test_a_base_that_was_changed_is_told(make_base: Callable[..., Path], data: Path, probe: Path,
                                         tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_base()
    run = train_run(tmp_path / "run", base, data, "--max-steps", 1, method="full")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    model.save_pretrained(base)
    done = edgeft("eval", run, "--probe", probe, check=False)
    assert done.returncode == 1
    assert "is not the base that training began with: fingerprint declared" in done.stderr


def test_what_cannot_be_measured_is_refused(base: Path, make_base: Callable[..., Path], data: Path, grammar: Path,
                                            lora_run: Path, tmp_path: Path) -> None:
    for arguments, code, said in [
            (("train", "full", "--base", make_base(weights=False), "--data", data, "--pairs", grammar), 2,
             "nothing that it could forget"),
            (("train", "lora", "--base", base, "--data", data, "--pairs", data), 1, "needs 'good' with text"),
            (("train", "lora", "--base", base, "--data", data, "--probe", data), 2, 'holds lines of {"text": ...}')]:
        done = edgeft(*arguments, "--out", tmp_path / "run", check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert not (tmp_path / "run").exists()
    done = edgeft("eval", lora_run, check=False)
    assert done.returncode == 2
    assert "--data is missing" in done.stderr
