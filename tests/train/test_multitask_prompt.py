"""multitask_prompt: each line is trained with its own task's prompt, and PEFT's prompt of one task is lowered."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgeft_plugins.multitask_prompt import MultitaskPrompt, MultitaskPromptOptions

from edgeft.cli import main
from edgeft.contract import BaseView, CannotLower
from edgeft.contract.artifact import read_artifact
from edgeft.contract.data import Example
from edgeft.contract.errors import UsageError
from edgeft.contract.tasks import choose_task
from edgeft.train.objective import Objective
from tests.conftest import lines, pairs, train_run

METHOD = MultitaskPrompt()
TEMPLATE = "Where? {prompt}"


class Recorder(BaseView):
    """A base that notes the embeddings it is asked to run."""

    config: Any = {}

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def names(self) -> Any:
        return []

    def shape(self, name: str) -> Any:
        raise AssertionError(name)

    tensor = shape

    def linears(self) -> Any:
        return {}

    def keys_values(self, embeddings: Any) -> Any:
        self.seen.append(embeddings)
        return {0: (embeddings[None], embeddings[None])}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that needs another prompt than naming colors."""
    return lines(tmp_path_factory.mktemp("data") / "places.jsonl", [
        {"prompt": f"the {kind} is in the {place}", "completion": f"place {place}"}
        for kind in ("cat", "dog", "bird") for place in ("house", "tree")] * 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path, places: Path) -> Path:
    """A prompt for two tasks, of which the second is to be shipped."""
    colors = lines(tmp_path_factory.mktemp("data") / "colors.jsonl", pairs(32))
    return train_run(tmp_path_factory.mktemp("runs") / "prompts", base, colors, "--data", places, "--template",
                     f"places={TEMPLATE}", "--task", "places", "--num-virtual-tokens", 5, "--num-ranks", 2,
                     "--epochs", 4, "--batch-size", 8, "--lr", 0.05, "--eval-data", f"places={places}", "--eval-data",
                     f"colors={colors}", method="multitask_prompt")


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "edgeft.json").read_text())


def call(*arguments: object) -> int:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def in_peft(run: Path, base: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run).eval()


def test_the_record_names_the_tasks_and_the_one_to_ship(run: Path) -> None:
    found = record(run)
    assert found["options"] == {"tasks": ["colors", "places"], "task": "places", "num_virtual_tokens": 5,
                                "num_ranks": 2}
    metrics = found["metrics"]
    for task in ("colors", "places"):
        assert metrics["eval"][task]["loss"] < metrics["eval_base"][task]["loss"]


def test_the_base_is_measured_without_a_prompt(run: Path, base: Path, places: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", base, "--data", places, "--json") == 0
    plain = json.loads(capsys.readouterr().out)["loss"]  # a bare model knows of no template and no separator
    assert record(run)["metrics"]["eval_base"]["places"]["loss"] != pytest.approx(plain, abs=1e-3)
    phrased = lines(places.parent / "phrased.jsonl", [
        {"prompt": TEMPLATE.replace("{prompt}", json.loads(line)["prompt"]) + "\n",
         "completion": json.loads(line)["completion"]} for line in places.read_text().splitlines()])
    assert call("eval", base, "--data", phrased, "--json") == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(
        record(run)["metrics"]["eval_base"]["places"]["loss"], abs=1e-5)


@pytest.mark.parametrize("task", ["colors", "places"])
def test_what_is_lowered_is_pefts_prompt_of_the_task(run: Path, base: Path, task: str) -> None:
    model = in_peft(run, base)
    artifact, options = choose_task(read_artifact(run), METHOD.read_peft(read_artifact(run).peft_config), task)
    view = Recorder()
    lowered = METHOD.lower(artifact.learned(), options, view)
    with torch.no_grad():
        prompts = [model.get_prompt(1, task_ids=torch.tensor([index]))[0].numpy() for index in (0, 1)]
    wanted = prompts[["colors", "places"].index(task)]
    assert view.seen[0].shape == (5, 64)
    assert np.abs(view.seen[0] - wanted).max() < 1e-6
    assert np.abs(prompts[0] - prompts[1]).max() > 1e-2
    assert lowered.kinds == ["prefix"]


def test_each_line_meets_its_own_tasks_prompt(run: Path, base: Path) -> None:
    """One batch of two tasks has the loss of each alone; a line of no task gets the default."""
    model = in_peft(run, base)
    ids, mask = [1, 20, 30, 40, 50], [False, False, True, True, True]
    with torch.no_grad():
        objective = Objective(model, model.get_output_embeddings(), task=1)
        first, second, none = (float(objective([Example(ids, mask, task)])) for task in (0, 1, None))
        both = float(objective([Example(ids, mask, 0), Example(ids, mask, 1)]))
    assert both == pytest.approx(first + second, abs=1e-4)
    assert first != pytest.approx(second, abs=1e-3)
    assert none == pytest.approx(second, abs=1e-5)


def test_eval_takes_the_task_or_the_one_to_ship(run: Path, places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = record(run)["metrics"]["eval"]["places"]["loss"]
    losses = []
    for options in ((), ("--task", "places"), ("--task", "colors")):
        assert call("eval", run, "--data", places, "--json", *options) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[:2] == pytest.approx([wanted, wanted], abs=1e-5)
    assert losses[2] != pytest.approx(wanted, abs=1e-3)
    assert call("eval", run, "--data", places, "--task", "place") == 2
    assert "there is no task 'place'. Did you mean 'places'" in capsys.readouterr().err


def test_the_prompt_format_is_narrowed_to_the_task(run: Path) -> None:
    options = METHOD.read_peft(read_artifact(run).peft_config)
    assert choose_task(read_artifact(run), options, None)[0].prompt.templates == (("places", TEMPLATE),)
    assert choose_task(read_artifact(run), options, "colors")[0].prompt.templates == (("colors", "{prompt}"),)


def test_a_strangers_folder_counts_its_tasks(run: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    artifact = read_artifact(tmp_path)
    options = METHOD.read_peft(artifact.peft_config)
    assert options == MultitaskPromptOptions(("0", "1"), "", 5, 2)
    views = [Recorder() for _ in range(3)]
    for view, task in zip(views, (None, "0", "1"), strict=True):
        METHOD.lower(artifact.learned(), choose_task(artifact, options, task)[1], view)
    assert np.array_equal(views[0].seen[0], views[1].seen[0])
    assert not np.array_equal(views[0].seen[0], views[2].seen[0])
    with pytest.raises(UsageError, match="there is no task '2'"):
        choose_task(artifact, options, "2")


@pytest.mark.parametrize(("change", "said"), [
    ({"prompt_tuning_init_state_dict_path": "/x.bin"}, "names a file to start from"),
    ({"num_transformer_submodules": 2}, "only decoders are exported"),
    ({"modules_to_save": ["lm_head"]}, "does not know modules_to_save"), ({"from_the_future": 1}, "from_the_future=1")])
def test_a_strangers_folder_that_computes_otherwise(run: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotLower, match=said):
        METHOD.read_peft({**read_artifact(run).peft_config, **change})


def test_tensors_that_do_not_fit(run: Path) -> None:
    learned = read_artifact(run).learned()
    options = METHOD.read_peft(read_artifact(run).peft_config)
    with pytest.raises(CannotLower, match="found prefix_task_cols, prefix_task_rows, prompt_embeddings, x"):
        METHOD.lower({**learned, "x": learned["prompt_embeddings"]}, options, Recorder())
    with pytest.raises(CannotLower, match="declared 2 tasks found 1"):
        METHOD.lower({**learned, "prefix_task_cols": learned["prefix_task_cols"][:1]}, options, Recorder())
    with pytest.raises(CannotLower, match="cannot be folded into weights"):
        METHOD.merge("w", learned["prompt_embeddings"], learned, options)


@pytest.mark.parametrize(("words", "said"), [
    (["--task", "nobody"], "there is no task 'nobody'"), (["--num-ranks", "0"], "num_ranks must be at least 1"),
    (["--tasks", "a,b"], "--tasks declared a, b found places in the mixture")])
def test_words_that_are_off(base: Path, places: Path, tmp_path: Path, words: list[str], said: str,
                            capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "multitask_prompt", "--base", base, "--data", places, "--out", tmp_path / "run", *words) == 2
    assert said in capsys.readouterr().err


def test_a_method_without_tasks_refuses_one_at_export(lora_run: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", lora_run, "--device", "cpu-x86_64", "--out", tmp_path / "b", "--task", "colors") == 2
    assert "learned one thing for all tasks" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
