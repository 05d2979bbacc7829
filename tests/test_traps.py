"""What a stranger's folder may hold, and what must not pass in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.tensors import TensorFile, write_tensors
from tests.conftest import edgeft, train_run


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A base of one's own to break."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_a_base_that_lacks_weights_is_refused(copy: Path, data: Path, tmp_path: Path) -> None:
    file = TensorFile(copy / "model.safetensors")
    write_tensors(copy / "model.safetensors", {name: np.array(file[name]) for name in file
                                               if "layers.1.mlp" not in name}, {"format": "pt"})
    for command in (["train", "lora", "--base", copy, "--data", data], ["export", copy, "--device", "cpu-x86_64"]):
        done = edgeft(*command, "--out", tmp_path / "out", check=False)
        assert done.returncode == 1
        assert "layers.1.mlp" in done.stderr


def test_code_in_a_base_is_never_run(copy: Path, data: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}))
    (copy / "c.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = edgeft("train", "lora", "--base", copy, "--data", data, "--out", tmp_path / "out", check=False, input="y\n")
    assert done.returncode == 2
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_remembers_a_truncation_does_not_cut(copy: Path, base: Path, data: Path,
                                                              tmp_path: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    runs = [train_run(tmp_path / str(index), folder, data, "--max-steps", 1)
            for index, folder in enumerate((base, copy))]
    tokens = [json.loads((run / "edgeft.json").read_text())["data"][0]["completion_tokens"] for run in runs]
    assert tokens[0] == tokens[1]


def test_an_adapter_put_back_under_its_name_verifies(bundle: Path, base: Path, data: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    other = train_run(tmp_path / "other", base, data, "--max-steps", 15, "--lr", 0.03, "--seed", 4)
    edgeft("remove", mine, "colors")
    edgeft("add", mine, other, "--name", "colors")
    assert "100% of tokens" in edgeft("verify", mine).stdout


def test_eval_refuses_pickles_and_other_bases(lora_run: Path, make_base: object, data: Path, tmp_path: Path) -> None:
    done = edgeft("eval", lora_run, "--data", data, "--base", make_base(seed=9), check=False)  # type: ignore[operator]
    assert done.returncode == 1
    assert "fingerprint" in done.stderr
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    (run / "adapter_model.safetensors").rename(run / "adapter_model.bin")
    done = edgeft("eval", run, "--data", data, check=False)
    assert done.returncode == 1
    assert "pickled" in done.stderr


@pytest.mark.parametrize("option", ["--max-grad-norm=0", "--epochs=nan", "--max-length=1", "--lora-alpha=0",
                                    "--seed=99999999999999999999999"])
def test_values_that_teach_nothing_are_refused(base: Path, data: Path, tmp_path: Path, option: str) -> None:
    done = edgeft("train", "lora", "--base", base, "--data", data, "--out", tmp_path / "out", option, check=False)
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "options", "name"), [
    ("lora", ("--target-modules", "nosuch"), "nosuch"), ("ia3", ("--target-modules", "nosuch"), "nosuch"),
    ("lora", ("--rank-pattern", "nosuch=4"), "nosuch"), ("lora", ("--alpha-pattern", "nosuch=4"), "nosuch"),
    ("lora", ("--target-modules", "q_proj", "--rank-pattern", "v_proj=4"), "v_proj"),
    ("lora", ("--target-modules", "q_proj", "--layers-to-transform", "6,7"), "7")])
def test_a_name_that_matches_no_layer_is_refused(base: Path, data: Path, tmp_path: Path, method: str,
                                                 options: tuple[str, ...], name: str) -> None:
    done = edgeft("train", method, "--base", base, "--data", data, "--out", tmp_path / "run", "--max-steps", 1,
                  *options, check=False)
    assert done.returncode == 1
    assert name in done.stderr
    assert not (tmp_path / "run" / "edgeft.json").exists()


@pytest.mark.parametrize("options", [("--target-modules", "q_proj,self_attn.v_proj"),
                                     ("--target-modules", "q_proj", "--layers-to-transform", "1"),
                                     ("--target-modules", r".*\.1\..*q_proj", "--rank-pattern", "1.*q_proj=4")])
def test_names_that_match_are_taken(base: Path, data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert (train_run(tmp_path / "run", base, data, "--max-steps", 1, *options) / "edgeft.json").is_file()


def test_one_name_of_several_that_matches_nothing_is_told(base: Path, data: Path, tmp_path: Path) -> None:
    """PEFT leaves it out without a word."""
    done = edgeft("train", "lora", "--base", base, "--data", data, "--out", tmp_path / "run", "--max-steps", 1,
                  "--target-modules", "q_proj,nosuch")
    assert "no layer of this base is called: nosuch; the other names are trained" in done.stderr
