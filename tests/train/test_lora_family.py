"""DoRA, PiSSA and OLoRA: what trained is what the run folder holds, for the untouched base, and exports beside it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle, train_run
from tests.train.test_loop import weights

TRAINING = ("--epochs", 4, "--lr", 0.01, "--batch-size", 8, "--r", 3, "--alpha", 5)
FAMILY: dict[str, tuple[object, ...]] = {
    "dora": ("--dora",), "olora": ("--init", "olora", "--rslora"), "pissa-dora": ("--init", "pissa", "--dora"),
    "pissa-patterns": ("--init", "pissa", "--rslora", "--rank-pattern", "q_proj=5", "--alpha-pattern", "up_proj=2")}


def loss_in_peft(run: Path, data: Path) -> float:
    """The folder on its own base, by PEFT."""
    from edgeft import plugins
    from edgeft.train.evaluate import evaluate_run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(evaluate_run(run, data, None, None, plugins.host())["loss"])


@pytest.mark.parametrize("member", FAMILY)
def test_the_run_folder_is_what_was_trained_and_exports(base: Path, data: Path, tmp_path: Path, member: str) -> None:
    run = train_run(tmp_path / "run", base, data, *TRAINING, "--eval-data", data, *FAMILY[member])
    metrics = json.loads((run / "edgeft.json").read_text())["metrics"]
    saved: dict[str, Any] = json.loads((run / "adapter_config.json").read_text())
    trained = metrics["eval"]["pairs"]["loss"]
    assert trained < metrics["eval_base"]["pairs"]["loss"] - 0.3
    assert loss_in_peft(run, data) == pytest.approx(trained, abs=1e-4)
    assert saved["init_lora_weights"] is True
    assert saved["r"] == (6 if "--init" in FAMILY[member] else 3)
    assert saved["use_dora"] == ("--dora" in FAMILY[member])
    for quant in ("fp32", "int4"):
        bundle = export_bundle(tmp_path / quant, run, "--quant", quant)
        report = json.loads((bundle / "bundle.json").read_text())["parity"]["adapters"]["run"]
        assert report.get("exact_activations", report)["largest_logit_difference"] < 1e-3
        assert report["effect"] > 0.1


def test_a_start_that_is_not_converted_would_be_another_adapter(base: Path, data: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion is what makes the folder right: without it the loss on the untouched base is another."""
    from edgeft_plugins.lora import Lora

    def only_rename(self: Lora, model: Any) -> None:
        model.peft_config["default"].init_lora_weights = True

    monkeypatch.setattr(Lora, "finish", only_rename)
    run = train_run(tmp_path / "run", base, data, *TRAINING, "--eval-data", data, "--init", "pissa")
    trained = json.loads((run / "edgeft.json").read_text())["metrics"]["eval"]["pairs"]["loss"]
    assert abs(loss_in_peft(run, data) - trained) > 0.1


def test_pissa_resumes_to_the_same_weights(base: Path, data: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeft.train import checkpoint

    options = (*TRAINING, "--init", "pissa", "--save-every", 5)
    whole = train_run(tmp_path / "whole", base, data, *options)
    save, broken = checkpoint.save, tmp_path / "broken"

    def save_and_stop(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(checkpoint, "save", save_and_stop)
        train_run(broken, base, data, *options)
    assert not (broken / "edgeft.json").exists()
    train_run(broken, base, data, *options, "--resume")
    first, second = weights(whole), weights(broken)
    assert first.keys() == second.keys()
    assert all(np.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_olora_on_transposed_layers_is_refused(make_base: Any, data: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        train_run(tmp_path / "run", make_base("gpt2"), data, "--init", "olora")
    assert "olora" in capsys.readouterr().err
