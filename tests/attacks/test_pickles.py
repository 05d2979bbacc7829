"""Pickled weights are refused by name, and never opened, wherever they lie."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.contract.tensors import Weights
from tests.conftest import edgeft

from .conftest import Refusal


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "ran")


def folder(tmp_path: Path, config: str, weights: str) -> Path:
    """A folder whose weights are a pickle."""
    made = tmp_path / "made"
    made.mkdir()
    (made / config).write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                **({"model_type": "llama"} if config == "config.json" else {}),
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj"],
                "base_model_name_or_path": "x",
            }
        )
    )
    (made / weights).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    return made


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_peft_folder(tmp_path: Path, refused: Refusal, name: str) -> None:
    made = folder(tmp_path, "adapter_config.json", name)
    said = refused("artifact", made, r"adapter_model\.safetensors: is not there", allowed=[str(made)])
    assert (name in said) == name.endswith(".bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_model_folder(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path, "config.json", name)
    with pytest.raises(EdgeftError, match=rf"pickled weights are not opened: {name}"):
        Weights(made)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_names_a_pickle(tmp_path: Path) -> None:
    made = folder(tmp_path, "config.json", "pytorch_model.bin")
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(EdgeftError, match=r"is pickled|not a safetensors file"):
        Weights(made)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_the_right_name(tmp_path: Path, refused: Refusal) -> None:
    made = folder(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    refused("artifact", made, "is pickled|not a safetensors file", allowed=[str(made)])
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_commands(bundle: Path, base: Path, tmp_path: Path) -> None:
    made = folder(tmp_path, "adapter_config.json", "adapter_model.bin")
    for command in (
        ["add", bundle, made, "--name", "evil"],
        ["export", made, "--base", base, "--device", "cpu-x86_64", "--out", tmp_path / "out"],
    ):
        done = edgeft(*command, check=False)
        assert done.returncode == 1
        assert "adapter_model.bin is pickled" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
