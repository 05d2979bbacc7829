"""A stranger's plugin, whole way: installed as a wheel into a fresh environment, nothing else changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.tensors import TensorFile

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "edgeft-bitfit"
PROMPT = "the red cat runs a tree"
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "demo", "dist", "*.egg-info", "__pycache__", "tests", "docs")


class Environment:
    """A virtual environment with edgeft's wheel; libraries are seen in the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        self.python = folder / "venv" / "bin" / "python"
        asked = self.run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        self.packages = Path(asked.stdout.strip())
        libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        (self.packages / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
        self.install(ROOT)

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A process in the environment's folder; its output is the message if it fails."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, env=kept,
                              cwd=self.folder)
        if check and done.returncode:
            raise AssertionError(f"{words}\n{done.stdout}\n{done.stderr}")
        return done

    def edgeft(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The installed command."""
        return self.run(self.python.with_name("edgeft"), *words, check=check)

    def install(self, source: Path) -> None:
        """Build a wheel of a copy of this folder and install it, offline."""
        copy = shutil.copytree(source, self.folder / "source" / source.name, ignore=NOT_SOURCE)
        wheels = self.folder / "wheels" / source.name
        self.run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                 "--wheel-dir", wheels, copy)
        self.run(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", "--no-index",
                 *wheels.glob("*.whl"))

    def files(self) -> dict[str, str]:
        """Every installed file of the environment with its digest."""
        return {path.relative_to(self.packages).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(self.packages.rglob("*")) if path.is_file() and "__pycache__" not in path.parts}


def torch_greedy(base: Path, biases: dict[str, Any], new: int = 16) -> list[int]:
    """Greedy tokens of the base with these tensors put in their places."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in biases.items()}, strict=False)
    ids = AutoTokenizer.from_pretrained(base)(PROMPT + "\n")["input_ids"]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < new and (not found or found[-1] != 2):
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("fresh"))


@pytest.mark.slow
def test_the_example_trains_exports_and_runs_with_nothing_else_changed(
        environment: Environment, make_base: Callable[..., Path], data: Path) -> None:
    base, llama = make_base("qwen2"), make_base()
    train = ("train", "bitfit", "--data", data, "--epochs", 12, "--lr", 0.05, "--batch-size", 8)
    refused = environment.edgeft(*train, "--base", base, "--out", "run", check=False)
    assert refused.returncode == 2
    assert "There is no method 'bitfit'" in refused.stderr
    before = environment.files()
    where = environment.run(environment.python, "-c", "import edgeft, edgeft_plugins.lora as lora; "
                            "print(edgeft.__file__, lora.__file__)").stdout.split()
    assert all(Path(file).is_relative_to(environment.packages) for file in where)  # the wheel, not this checkout

    environment.install(EXAMPLE)
    after = environment.files()
    assert {name for name in after if name not in before and ".dist-info/" not in name} == {"edgeft_bitfit.py"}
    rows = json.loads(environment.edgeft("plugins", "--json").stdout)["plugins"]
    assert {"name": "bitfit", "source": "edgeft-bitfit 0.1.0", "methods": ["bitfit"], "devices": [], "commands": [],
            "errors": []} in rows
    assert [row["errors"] for row in rows] == [[]] * len(rows)

    environment.edgeft(*train, "--base", base, "--out", "run")
    learned = TensorFile(environment.folder / "run" / "learned.safetensors")
    assert set(learned) == {f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in (0, 1) for name in "qkv"}
    export = ("export", "run", "--device", "cpu-x86_64", "--quant", "fp32")
    refused = environment.edgeft(*export, "--out", "beside", check=False)
    assert refused.returncode == 1
    assert "--merge" in refused.stderr
    report = json.loads(environment.edgeft(*export, "--out", "bundle", "--merge", "--json").stdout)["parity"]["base"]
    assert report["largest_logit_difference"] < 1e-3
    tokens = json.loads(environment.edgeft("run", "bundle", "--prompt", PROMPT, "--max-tokens", 16, "--json").stdout)
    assert tokens["tokens"] == torch_greedy(base, dict(learned))
    assert tokens["tokens"] != torch_greedy(base, {})

    refused = environment.edgeft(*train, "--base", llama, "--out", "none", check=False)
    assert refused.returncode == 1
    assert "this base has no biases" in refused.stderr
    assert "Traceback" not in refused.stderr
    found = environment.files()
    assert {name: found.get(name) for name in before} == before


@pytest.mark.slow
def test_the_examples_own_tests_pass_in_it(environment: Environment) -> None:
    if "edgeft_bitfit.py" not in environment.files():
        environment.install(EXAMPLE)
    file = environment.folder / "kit" / "test_bitfit.py"
    file.parent.mkdir()
    shutil.copy(EXAMPLE / "tests" / "test_bitfit.py", file)
    assert len(file.read_text().splitlines()) < 15
    done = environment.run(environment.python, "-m", "pytest", "-p", "no:cacheprovider", "-rs", file)
    assert "passed" in done.stdout
    assert "failed" not in done.stdout
