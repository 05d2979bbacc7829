"""Training: it learns, resumes to the same weights, and leaves the run folder of the contract."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.tensors import TensorFile
from tests.conftest import edgeft, lines, pairs, train_run


def weights(run: Path) -> dict[str, np.ndarray]:
    """All tensors of a run."""
    name = "adapter_model.safetensors" if (run / "adapter_config.json").exists() else "model.safetensors"
    file = TensorFile(run / name)
    return {key: np.array(file[key]) for key in file}


def record(run: Path) -> dict:
    return json.loads((run / "edgeft.json").read_text())


def test_training_lowers_the_held_out_loss(lora_run: Path, base: Path, data: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", base, data, "--epochs", 20, "--lr", 0.03, "--batch-size", 8, "--eval-data", data)
    found = record(run)
    (name,) = found["metrics"]["eval"]
    assert found["metrics"]["eval"][name]["loss"] < 0.8 * found["metrics"]["eval_base"][name]["loss"]
    assert found["prompt"] == {"kind": "pair", "separator": "\n"}
    assert not (run / "checkpoints").exists()


def test_a_lora_run_loads_in_plain_peft_and_changes_the_model(lora_run: Path, base: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)
        before = plain(ids).logits
        tuned = PeftModel.from_pretrained(plain, lora_run)
        after = tuned(ids).logits
        with tuned.disable_adapter():
            off = tuned(ids).logits
    assert (after - before).abs().max() > 0.1
    assert torch.equal(off, before)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_not(base: Path, data: Path, tmp_path: Path) -> None:
    runs = [weights(train_run(tmp_path / str(index), base, data, "--max-steps", 4, "--seed", seed))
            for index, seed in enumerate((7, 7, 8))]
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_kill_and_resume_ends_with_the_same_weights(base: Path, data: Path, tmp_path: Path, method: str) -> None:
    options = ["train", method, "--base", base, "--data", data, "--epochs", 12, "--save-every", 5, "--batch-size", 4]
    if method == "lora":
        options += ["--lora-dropout", 0.1]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    edgeft(*options, "--out", whole)
    process = subprocess.Popen([sys.executable, "-m", "edgeft", *map(str, options), "--out", str(broken)],
                               stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((broken / "checkpoints").glob("step-*")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "edgeft.json").exists(), "the run ended before it could be killed: give it more steps"
    assert "has not ended" in edgeft("export", broken, "--device", "cpu-x86_64", "--out", tmp_path / "b",
                                     check=False).stderr
    assert "--resume" in edgeft(*options, "--out", broken, check=False).stderr
    edgeft("train", method, "--out", broken, "--resume")
    first, second = weights(whole), weights(broken)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_resume_refuses_other_settings(base: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(run, base, data, "--max-steps", 2)
    (run / "edgeft.json").unlink()  # as if it had not ended
    done = edgeft("train", "lora", "--out", run, "--resume", "--lr", 0.5, check=False)
    assert done.returncode == 2
    assert "learning_rate" in done.stderr


def test_a_mixture_has_a_loss_per_task(base: Path, tmp_path: Path) -> None:
    first = lines(tmp_path / "first.jsonl", pairs(200))
    second = lines(tmp_path / "second.jsonl", [{"text": f"one two three {word} four five the cat runs"}
                                               for word in ("red", "blue", "tree", "bird")] * 20)
    run = tmp_path / "run"
    train_run(run, base, first, "--data", f"{second}:0.5", "--max-steps", 3, "--holdout", 0.2)
    found = record(run)
    assert [task["weight"] for task in found["data"]] == [1.0, 0.5]
    assert set(found["metrics"]["eval"]) <= {"first", "second"}
    assert "first" in found["metrics"]["eval"]
    assert found["prompt"]["kind"] == "pair"


def test_chats_learn_from_assistant_turns_alone(base: Path, tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": f"the {color} cat"}, {"role": "assistant", "content": color}]}
             for color in ("red", "green", "blue")] * 10
    run = train_run(tmp_path / "run", base, lines(tmp_path / "chats.jsonl", chats), "--epochs", 60, "--lr", 0.01,
                    method="full")
    assert record(run)["prompt"]["kind"] == "chat"
    assert record(run)["metrics"]["train_loss"] < 0.5


def test_text_from_a_config_alone_is_pre_training(make_base: Callable[..., Path], tmp_path: Path) -> None:
    new = make_base(weights=False)
    texts = lines(tmp_path / "texts.jsonl", [{"text": "the red cat sees the blue bird and runs"}] * 60)
    run = train_run(tmp_path / "run", new, texts, "--epochs", 60, "--lr", 0.01, "--eval-data", texts,
                    "--max-length", 32, method="full")
    found = record(run)
    assert found["base"]["fingerprint"] is None
    assert found["metrics"]["eval"]["texts"]["loss"] < 0.3
    assert (run / "config.json").is_file()
    assert (run / "tokenizer.json").is_file()


def test_the_probe_measures_forgetting(base: Path, data: Path, tmp_path: Path) -> None:
    probe = lines(tmp_path / "probe.jsonl", [{"text": "the small house is in the large tree"}] * 5)
    run = train_run(tmp_path / "run", base, data, "--max-steps", 20, "--lr", 0.02, "--probe", probe)
    found = record(run)["forgetting"]
    assert found["forgetting"] == pytest.approx(found["tuned_loss"] - found["base_loss"])
    assert found["forgetting"] != 0
    again = json.loads(edgeft("eval", run, "--data", data, "--probe", probe, "--json").stdout)
    assert again["forgetting"] == pytest.approx(found["forgetting"], abs=1e-4)


def test_training_on_the_grid_leaves_the_codes_alone(base: Path, data: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", base, data, "--max-steps", 4, "--device", "cpu-x86_64")
    grid = record(run)["grid"]
    assert {key: grid[key] for key in ("device", "quant", "block", "symmetric", "rounding", "packed")} == {
        "device": "cpu-x86_64", "quant": "int4", "block": 128, "symmetric": True, "rounding": "rtn", "packed": False}
    assert len(grid["fingerprint"]) == 64
    assert "model.layers.1.mlp.down_proj.weight" in grid["tensors"]
    task = json.loads(edgeft("eval", run, "--data", data, "--json").stdout)
    again = train_run(tmp_path / "again", base, data, "--max-steps", 4, "--device", "cpu-x86_64", "--eval-data", data)
    assert task["loss"] == pytest.approx(record(again)["metrics"]["eval"]["pairs"]["loss"], abs=1e-4)
    done = edgeft("train", "full", "--base", base, "--data", data, "--device", "cpu-x86_64", "--out",
                  tmp_path / "full", check=False)
    assert done.returncode == 2
    assert "grid" in done.stderr


def test_an_end_token_that_the_base_never_saw_is_told(make_base: Callable[..., Path], data: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens that were never trained share one embedding: with a frozen head no adapter can end an answer."""
    import torch
    from transformers import AutoModelForCausalLM

    base = make_base()
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[200:230] = model.get_input_embeddings().weight[2]
    model.save_pretrained(base)
    said = {}
    for name, options in {"plain": (), "head": ("--target-modules", "q_proj,lm_head")}.items():
        train_run(tmp_path / name, base, data, "--max-steps", 1, *options)
        said[name] = capsys.readouterr().err
    assert "never saw its end token: 30 other tokens" in said["plain"]
    assert "end token" not in said["head"]
    train_run(tmp_path / "full", base, data, "--max-steps", 1, method="full")
    train_run(tmp_path / "known", make_base(seed=1), data, "--max-steps", 1)
    assert "end token" not in capsys.readouterr().err
