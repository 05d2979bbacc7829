"""Compiled layers and bfloat16 compute what they should, and a compiler that fails is one message."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import train_run


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_compiled_layers_learn_the_same(base: Path, data: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any compiler; what inductor makes of it takes half a minute and is torch's own to test."""
    compiled: list[object] = []

    def traced(forward: object, **given: object) -> object:
        compiled.append(forward)
        return compiler(forward, **given, backend="aot_eager")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    options = ("--max-steps", 3, "--lr", 0.02, "--batch-size", 4)
    plain = train_run(tmp_path / "plain", base, data, *options)
    assert not compiled
    other = train_run(tmp_path / "compiled", base, data, *options, "--compile")
    assert len(compiled) == 2
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5)


def test_a_compiler_that_fails_is_one_message(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    from edgeft.cli import main

    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("there is no C++ compiler")

    torch.compiler.reset()  # a layer that other tests compiled often enough is left as it is
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(SystemExit) as done:
        main(["train", "lora", "--base", str(base), "--data", str(data), "--out", str(tmp_path / "run"), "--compile",
              "--max-steps", "1"])
    said = capsys.readouterr().err
    assert done.value.code == 1
    assert "Train without --compile" in said
    assert "there is no C++ compiler" in said


def test_bfloat16_is_near_and_not_equal(base: Path, data: Path, tmp_path: Path) -> None:
    options = ("--max-steps", 3, "--lr", 0.005, "--eval-data", data)
    runs = [train_run(tmp_path / kind, base, data, *options, "--precision", kind) for kind in ("fp32", "bf16")]
    assert losses(runs[0]) != losses(runs[1])
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=0.02)
    found = [json.loads((run / "edgeft.json").read_text())["metrics"]["eval"]["pairs"]["loss"] for run in runs]
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert found[0] != pytest.approx(found[1], rel=1e-6)  # evaluated in bfloat16 as well
