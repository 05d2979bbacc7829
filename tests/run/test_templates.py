"""The runner phrases prompts by the template that the adapter was trained with, of the task that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import cli
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Model, load
from tests.conftest import edgeft, export_bundle, lines, pairs, train_run

PROMPT = "the red cat runs a tree"
COLORS, KINDS = "Name the color and kind. {prompt}", "{prompt} What kind?"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second task on the same prompts."""
    return lines(tmp_path_factory.mktemp("data") / "kinds.jsonl", [
        {"prompt": pair["prompt"], "completion": pair["completion"].partition("kind ")[2]} for pair in pairs(60)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path, kinds: Path) -> Path:
    """A LoRA for two tasks that only their templates tell apart."""
    return train_run(tmp_path_factory.mktemp("runs") / "two", base, f"colors={data}", "--data", f"kinds={kinds}",
                     "--template", f"colors={COLORS}", "--template", f"kinds={KINDS}", "--epochs", 3, "--lr", 0.03,
                     "--batch-size", 8, "--eval-data", f"kinds={kinds}", "--eval-data", f"colors={data}")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """Its bundle."""
    return export_bundle(tmp_path_factory.mktemp("bundles") / "two", run, "--quant", "fp32")


@pytest.fixture(scope="module")
def model(two: Path) -> Model:
    return load(str(two))


def tokens(model: Model, text: str) -> list[int]:
    return model.generate(text, raw=True, max_tokens=1).prompt_tokens


def test_the_task_picks_the_template(model: Model) -> None:
    found = {task: model.generate(PROMPT, task=task, max_tokens=4).prompt_tokens for task in ("colors", "kinds")}
    assert found["colors"] == tokens(model, f"Name the color and kind. {PROMPT}\n")
    assert found["kinds"] == tokens(model, f"{PROMPT} What kind?\n")
    pieces = model.stream(PROMPT, task="kinds", max_tokens=4)
    assert "".join(pieces) == model.generate(PROMPT, task="kinds", max_tokens=4)


def test_a_batch_has_a_task_per_row(model: Model) -> None:
    rows = model.batch([PROMPT, PROMPT], task=["colors", "kinds"], max_tokens=4)
    assert [row.prompt_tokens for row in rows] == [
        model.generate(PROMPT, task=task, max_tokens=4).prompt_tokens for task in ("colors", "kinds")]
    assert [row.prompt_tokens for row in model.batch([PROMPT] * 2, task="kinds", max_tokens=4)] \
        == [rows[1].prompt_tokens] * 2
    with pytest.raises(UsageError, match="2 prompts, 2 sets of adapters and 1 tasks do not match"):
        model.batch([PROMPT, PROMPT], task=["colors"])


def test_a_missing_or_unknown_task_lists_them(model: Model) -> None:
    with pytest.raises(UsageError, match="colors, kinds"):
        model.generate(PROMPT)
    with pytest.raises(UsageError, match="Did you mean 'kinds'"):
        model.generate(PROMPT, task="kind")
    with pytest.raises(UsageError, match="without prompt templates"):
        model.generate(PROMPT, adapters={}, task="kinds")
    assert model.generate(PROMPT, adapters={}, max_tokens=2).prompt_tokens == tokens(model, PROMPT)


def test_one_template_is_applied_by_itself(two: Path, model: Model, tmp_path: Path) -> None:
    """A file whose header holds one template alone; a broken one is refused when it is used."""
    file = TensorFile(two / "adapters" / "two.safetensors")
    for name, templates in (("one", {"colors": COLORS}), ("broken", {"colors": "{prompt} {0}"})):
        write_tensors(tmp_path / f"{name}.safetensors", {key: np.array(file[key]) for key in file},
                      {**file.metadata, "templates": json.dumps(templates)})
        model.load_adapter(name, tmp_path / f"{name}.safetensors")
    assert model.generate(PROMPT, adapters={"one": 1.0}, max_tokens=2).prompt_tokens \
        == tokens(model, f"Name the color and kind. {PROMPT}\n")
    with pytest.raises(EdgeftError, match="no braces but"):
        model.generate(PROMPT, adapters={"broken": 1.0})
    with pytest.raises(UsageError, match="different prompt formats or templates"):
        model.generate(PROMPT, adapters={"one": 0.5, "two": 0.5})
    for name in ("one", "broken"):
        model.unload_adapter(name)


@pytest.mark.parametrize("task", ["colors", "kinds"])
def test_eval_of_the_bundle_equals_what_training_measured(two: Path, run: Path, data: Path, kinds: Path, task: str,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", str(two), "--data", str(data if task == "colors" else kinds), "--task", task, "--json"])
    metrics: dict[str, Any] = json.loads((run / "edgeft.json").read_text())["metrics"]
    losses = {name: metrics["eval"][name]["loss"] for name in ("colors", "kinds")}
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(losses[task], abs=1e-4)
    assert losses["colors"] != pytest.approx(losses["kinds"], abs=1e-3)


def test_run_and_chat_take_a_task(two: Path, model: Model) -> None:
    answer = model.generate(PROMPT, task="kinds", max_tokens=8).strip()
    assert edgeft("run", two, "--prompt", PROMPT, "--task", "kinds", "--max-tokens", 8).stdout.strip() == answer
    done = edgeft("chat", two, "--max-tokens", 8, input=f"{PROMPT}\n/task nobody\n/task kinds\n{PROMPT}\n")
    assert "colors, kinds. Choose one" in done.stderr
    assert "There is no task 'nobody'" in done.stderr
    assert answer in done.stdout
    assert edgeft("chat", two, "--task", "nobody", check=False, input="").returncode == 2


def test_a_tuned_base_keeps_its_templates(run: Path, tmp_path: Path) -> None:
    bundle = export_bundle(tmp_path / "merged", run, "--quant", "fp32", "--merge")
    model = load(str(bundle))
    assert model.generate(PROMPT, task="kinds", max_tokens=2).prompt_tokens == tokens(model, f"{PROMPT} What kind?\n")
    with pytest.raises(UsageError, match="colors, kinds"):
        model.generate(PROMPT)
