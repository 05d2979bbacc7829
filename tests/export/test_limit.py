"""`--forgetting-budget`: what ships stays within it, says so, and is what the runner answers at that scale."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.cli import main
from edgeft.contract.bundle import MANIFEST
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run.evaluate import evaluate
from edgeft.run.verify import verify
from tests.conftest import WORDS, export_bundle, lines, pairs, train_run


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that the base knows: numbers in their order, things in theirs."""
    texts = [{"text": " ".join(WORDS[start:] + WORDS[:start])} for start in range(len(WORDS))]
    return lines(tmp_path_factory.mktemp("probe") / "known.jsonl", texts)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path], probe: Path) -> Path:
    """A base that was trained on that text."""
    return train_run(tmp_path_factory.mktemp("bases") / "knowing", make_base(weights=False), probe, "--epochs", 60,
                     "--lr", 0.01, "--max-length", 64, "--holdout", 0, method="full")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, knowing: Path) -> Path:
    """A LoRA that learns a task there, and forgets."""
    folder = tmp_path_factory.mktemp("limit")
    return train_run(folder / "colors", knowing, lines(folder / "pairs.jsonl", pairs(60)), "--epochs", 8, "--lr", 0.01,
                     "--batch-size", 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """Its bundle without a limit."""
    return export_bundle(tmp_path_factory.mktemp("limit") / "whole", run, "--quant", "fp32")


@pytest.fixture(scope="module")
def forgotten(whole: Path, run: Path, probe: Path) -> float:
    """What it forgets at scale 1."""
    found = float(evaluate(whole, run.parent / "pairs.jsonl", probe, None)["forgetting"])
    assert found > 0.1, "the fixture must forget, or nothing is limited"
    return found


@pytest.fixture(scope="module")
def hurting(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """The same LoRA turned round: where a little of it helped the probe, a little of this hurts."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("limit") / "hurting"))
    file = TensorFile(folder / "adapter_model.safetensors")
    tensors = {name: np.array(file[name]) * (-1 if "lora_B" in name else 1) for name in file}
    write_tensors(folder / "adapter_model.safetensors", tensors, file.metadata)
    return folder


def entry(bundle: Path, name: str = "colors") -> dict[str, Any]:
    return dict(json.loads((bundle / MANIFEST).read_text())["adapters"][name])


def matrices(bundle: Path, name: str = "colors") -> dict[str, Any]:
    file = TensorFile(bundle / "adapters" / f"{name}.safetensors")
    return {key: np.array(file[key]) for key in file}


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """The message of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert out == ""
    assert "Traceback" not in err
    return err.partition("edgeft: ")[2]


def limited(out: Path, source: Path, budget: float, probe: Path, *more: object) -> Path:
    """An fp32 bundle of a run, held to a budget."""
    return export_bundle(out, source, "--quant", "fp32", "--forgetting-budget", budget, "--probe", probe, *more)


@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_the_bundle_stays_within_the_budget_and_says_so(tmp_path: Path, run: Path, probe: Path, forgotten: float,
                                                        quant: str, capsys: pytest.CaptureFixture[str]) -> None:
    budget = 0.3 * forgotten
    bundle = export_bundle(tmp_path / "b", run, "--quant", quant, "--forgetting-budget", budget, "--probe", probe)
    said = capsys.readouterr().out
    measured = evaluate(bundle, run.parent / "pairs.jsonl", probe, None)
    assert 0.95 * budget <= measured["forgetting"] <= budget
    told = entry(bundle)
    assert 0.05 <= told["scale"] < 1
    assert told["forgetting"]["forgetting"] == pytest.approx(measured["forgetting"], abs=2e-3 * budget)
    assert told["forgetting_budget"] == pytest.approx(budget)
    assert told["task_loss"]["loss"] == pytest.approx(measured["loss"], rel=0.01)
    assert told["task_loss"]["loss"] > told["task_loss"]["loss_at_scale_1"]
    header = TensorFile(bundle / "adapters" / "colors.safetensors").metadata
    assert float(header["scale"]) == told["scale"]
    assert header["probe_sha256"] == told["forgetting"]["probe_sha256"]
    assert {"forgetting", "forgetting_budget", "task_loss"} <= header.keys()
    assert f"scale {told['scale']:g}: forgets +" in said
    assert f"of a budget of {budget:g}" in said
    assert verify(bundle)["agreement"] == 1


def test_the_scale_is_folded_into_the_tensors(tmp_path: Path, run: Path, whole: Path, probe: Path,
                                              forgotten: float) -> None:
    bundle = limited(tmp_path / "b", run, forgotten / 2, probe)
    scale, before, after = entry(bundle)["scale"], matrices(whole), matrices(bundle)
    for key in before:
        expected = before[key] * np.float32(scale) if key.endswith(".B") else before[key]
        assert np.array_equal(after[key], expected)
    assert any(not np.array_equal(after[key], before[key]) for key in before)
    text = run.parent / "pairs.jsonl"
    asked = evaluate(whole, text, probe, {"colors": scale})
    found = evaluate(bundle, text, probe, None)
    assert found["forgetting"] == pytest.approx(asked["forgetting"], abs=1e-6)
    assert found["loss"] == pytest.approx(asked["loss"], abs=1e-6)


def test_what_is_within_already_is_left_as_it_is(tmp_path: Path, run: Path, whole: Path, probe: Path,
                                                 forgotten: float) -> None:
    bundle = limited(tmp_path / "b", run, 2 * forgotten, probe)
    assert entry(bundle)["scale"] == 1
    before, after = matrices(whole), matrices(bundle)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_merged_it_stays_within_too(tmp_path: Path, run: Path, probe: Path, forgotten: float) -> None:
    budget = forgotten / 2
    bundle = limited(tmp_path / "b", run, budget, probe, "--merge")
    manifest = json.loads((bundle / MANIFEST).read_text())
    told = manifest["merged"]
    assert manifest["adapters"] == {}
    assert 0.9 * budget <= told["forgetting"]["forgetting"] <= budget
    text = lines(tmp_path / "probe-as-data.jsonl", [json.loads(line) for line in probe.read_text().splitlines()])
    merged = evaluate(bundle, text, None, None)["loss"]
    assert merged - told["forgetting"]["base_loss"] == pytest.approx(told["forgetting"]["forgetting"], abs=1e-4)
    full = export_bundle(tmp_path / "full", run, "--quant", "fp32", "--merge")
    assert evaluate(full, text, None, None)["loss"] - merged > 0.3 * budget
    assert json.loads((full / MANIFEST).read_text())["base"]["fingerprint"] != manifest["base"]["fingerprint"]


def test_an_impossible_budget_is_refused_with_the_figures(tmp_path: Path, hurting: Path, probe: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, 1, "export", hurting, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b",
                 "--forgetting-budget", "1e-6", "--probe", probe)
    assert f"no scale of it stays within --forgetting-budget 1e-06 on {probe}" in said
    assert [float(scale) for scale in re.findall(r"scale (\S+): forgets \+", said)] == [1, 0.5, 0.05]
    assert not list(tmp_path.iterdir())


def test_add_keeps_to_a_budget_and_leaves_the_bundle_alone_when_it_cannot(
        tmp_path: Path, run: Path, hurting: Path, probe: Path, forgotten: float,
        capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export_bundle(tmp_path / "b", run, "--quant", "fp32")
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    fails(capsys, 1, "add", bundle, hurting, "--name", "less", "--forgetting-budget", "1e-6", "--probe", probe)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit) as ended:
        main(["add", str(bundle), str(run), "--name", "less", "--forgetting-budget", str(forgotten / 2), "--probe",
              str(probe)])
    assert ended.value.code == 0
    assert "of a budget of" in capsys.readouterr().out
    assert entry(bundle, "less")["scale"] < 1
    assert "scale" not in entry(bundle)
    text = run.parent / "pairs.jsonl"
    again = fails(capsys, 2, "add", bundle, run, "--name", "less", "--forgetting-budget", "1", "--probe", probe)
    assert again.startswith(f"{bundle}: has an adapter 'less' already")
    found = [evaluate(bundle, text, probe, {name: 1.0})["forgetting"] for name in ("less", "colors")]
    assert found[0] <= forgotten / 2 < found[1]
    assert verify(bundle)["replayed"] > 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_factors_are_scaled_towards_one(tmp_path: Path, knowing: Path, run: Path, probe: Path) -> None:
    tuned = train_run(tmp_path / "ia3", knowing, run.parent / "pairs.jsonl", "--epochs", 20, "--lr", 0.1,
                      "--batch-size", 8, method="ia3")
    plain = export_bundle(tmp_path / "plain", tuned, "--quant", "fp32")
    text = run.parent / "pairs.jsonl"
    forgotten = evaluate(plain, text, probe, None)["forgetting"]
    assert forgotten > 0.05
    bundle = limited(tmp_path / "b", tuned, forgotten / 2, probe)
    scale = entry(bundle, "ia3")["scale"]
    assert scale < 1
    before, after = matrices(plain, "ia3"), matrices(bundle, "ia3")
    for key in before:
        assert key.endswith(".scale")
        np.testing.assert_allclose(after[key], 1 + scale * (before[key] - 1), rtol=1e-6)
    assert evaluate(bundle, text, probe, None)["forgetting"] <= forgotten / 2


def test_a_soft_prompt_has_no_scale(tmp_path: Path, knowing: Path, run: Path, probe: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    soft = train_run(tmp_path / "soft", knowing, run.parent / "pairs.jsonl", "--max-steps", 10, method="prompt_tuning")
    words = ["export", soft, "--device", "cpu-x86_64", "--quant", "fp32", "--probe", probe, "--forgetting-budget"]
    said = fails(capsys, 1, *words, "1e-9", "--out", tmp_path / "b")
    assert "is a soft prompt, which is there or not" in said
    assert not (tmp_path / "b").exists()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*words, "100", "--out", tmp_path / "b")])
    assert ended.value.code == 0
    assert entry(tmp_path / "b", "soft")["scale"] == 1


@pytest.mark.parametrize(("words", "said"), [
    (["--forgetting-budget", "-0.1", "--probe", "PROBE"], "must be a finite number of nats per token, 0 or more"),
    (["--forgetting-budget", "nan", "--probe", "PROBE"], "must be a finite number"),
    (["--forgetting-budget", "0.1"], "needs --probe"), (["--probe", "PROBE"], "--probe is for --forgetting-budget"),
    (["--forgetting-budget", "0.1", "--probe", "PAIRS"], 'a probe for forgetting holds lines of {"text": ...}'),
    (["--forgetting-budget", "0.1", "--probe", "nowhere.jsonl"], "nowhere.jsonl: cannot be read")])
def test_words_that_are_off(tmp_path: Path, run: Path, whole: Path, probe: Path, words: list[str], said: str,
                            capsys: pytest.CaptureFixture[str]) -> None:
    words = [{"PROBE": str(probe), "PAIRS": str(run.parent / "pairs.jsonl")}.get(word, word) for word in words]
    assert said in fails(capsys, 2, "export", run, "--device", "cpu-x86_64", "--out", tmp_path / "b", *words)
    assert said in fails(capsys, 2, "add", whole, run, "--name", "x", *words)
    assert not list(tmp_path.iterdir())


def test_a_whole_model_has_no_scale(tmp_path: Path, knowing: Path, probe: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, 2, "export", knowing, "--device", "cpu-x86_64", "--out", tmp_path / "b", "--forgetting-budget",
                 "0.1", "--probe", probe)
    assert "is a model of its own, and only an adapter has a scale at run time" in said
    assert "--interpolate" in said
