"""Multitask training: templates and held-out tasks on the way in, edgeft.json on the way out."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from tests.conftest import lines, pairs, train_run

COLORS, PLACES = "Name the color and kind. {prompt}", "Where is it? {prompt}"


def places(count: int) -> list[dict[str, str]]:
    """Another task on like words."""
    return [{"prompt": f"the {kind} is in the {place}", "completion": f"place {place}"}
            for kind in ("cat", "dog", "bird") for place in ("house", "tree")][:count] * 8


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tasks, one that is held out, and what each is evaluated on."""
    folder = tmp_path_factory.mktemp("mixture")
    return {"colors": lines(folder / "colors.jsonl", pairs(60)), "places": lines(folder / "places.jsonl", places(6)),
            "valid": lines(folder / "valid.jsonl", pairs(12, start=60)),
            "counts": lines(folder / "counts.jsonl", [{"prompt": "one two", "completion": "three four"},
                                                      {"prompt": "two three", "completion": "four five"}])}


@pytest.fixture(scope="module")
def config(mixture: dict[str, Path]) -> Path:
    """The mixture as TOML."""
    path = mixture["colors"].parent / "mixture.toml"
    path.write_text(f"""
sampling = "equal"
epochs = 2
lr = 0.02
[tasks.colors]
data = "{mixture['colors']}"
template = "{COLORS}"
eval-data = "{mixture['valid']}"
[tasks.places]
data = "{mixture['places']}"
template = "{PLACES}"
[tasks.counts]
data = "{mixture['counts']}"
held-out = true
""".replace("lr =", "learning_rate ="))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path, config: Path) -> Path:
    """A LoRA on the mixture, from the TOML file alone."""
    out = tmp_path_factory.mktemp("runs") / "mixed"
    assert call("train", "lora", "--base", base, "--config", config, "--out", out) == 0
    return out


def call(*arguments: object) -> int:
    """The command line in this process; its exit code."""
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "edgeft.json").read_text())


def test_the_record_says_what_was_drawn_and_how_it_was_phrased(run: Path) -> None:
    found = record(run)
    assert found["prompt"] == {"kind": "pair", "separator": "\n", "templates": {"colors": COLORS, "places": PLACES}}
    drawn = {task["name"]: task["drawn"] for task in found["data"]}
    assert drawn["colors"]["examples"] == drawn["places"]["examples"]
    assert drawn["colors"]["share_of_examples"] == 0.5
    assert drawn["colors"]["share_of_tokens"] > drawn["places"]["share_of_tokens"]
    assert found["data"][0]["held_out"] == 0  # it has evaluation data of its own


def test_every_task_has_its_losses_and_a_held_out_one_too(run: Path) -> None:
    metrics = record(run)["metrics"]
    assert "colors" in metrics["eval"]
    assert metrics["eval"]["colors"]["loss"] < metrics["eval_base"]["colors"]["loss"]
    assert metrics["held_out"].keys() == {"counts"}
    counts = metrics["held_out"]["counts"]
    assert counts["change"] == pytest.approx(counts["loss"] - counts["base_loss"])
    assert counts["change"] != 0


def test_training_and_evaluation_phrase_alike(run: Path, mixture: dict[str, Path],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    """The recorded losses come again from `edgeft eval`, with the task's template and not with another's."""
    metrics = record(run)["metrics"]

    def loss(data: str, *options: object) -> float:
        assert call("eval", run, "--data", mixture[data], "--json", *options) == 0
        return json.loads(capsys.readouterr().out)["loss"]

    assert loss("valid", "--task", "colors") == pytest.approx(metrics["eval"]["colors"]["loss"], abs=1e-5)
    assert loss("valid", "--task", "places") != pytest.approx(metrics["eval"]["colors"]["loss"], abs=1e-3)


@pytest.mark.parametrize(("options", "said"), [((), "colors, places. Choose one with --task"),
                                               (("--task", "place"), "Did you mean 'places'")])
def test_eval_asks_for_the_task_and_lists_them(run: Path, mixture: dict[str, Path], options: tuple[str, ...], said: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", run, "--data", mixture["valid"], *options) == 2
    assert said in capsys.readouterr().err


def test_flags_make_the_same_run_as_toml(run: Path, base: Path, mixture: dict[str, Path], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    train_run(tmp_path / "run", base, f"colors={mixture['colors']}", "--data", f"places={mixture['places']}",
              "--template", f"colors={COLORS}", "--template", f"places={PLACES}", "--sampling", "equal",
              "--eval-data", f"colors={mixture['valid']}", "--held-out-task", f"counts={mixture['counts']}",
              "--epochs", 2, "--lr", 0.02)
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() \
        == (run / "adapter_model.safetensors").read_bytes()
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.startswith(("loss", "colors", "counts"))]
    assert table[0][-4:] == ["base", "tuned", "change", "tokens"]
    found = record(run)["metrics"]["held_out"]["counts"]
    assert table[-1][-4:] == [f"{found['base_loss']:.3f}", f"{found['loss']:.3f}", f"{found['change']:+.3f}",
                              str(found["tokens"])]


def test_a_mixture_resumes_as_it_was_started(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "edgeft.json").unlink()  # as if it had not ended
    before = (run / "adapter_model.safetensors").read_bytes()
    assert call("train", "lora", "--out", copy, "--resume", "--template", "places={prompt}") == 2
    assert "these differ: tasks" in capsys.readouterr().err
    assert call("train", "lora", "--out", copy, "--resume") == 0
    assert (copy / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("arguments", "said"), [
    (["--held-out-task", "{copy}"], "and task 'colors' trains on the same lines"),
    (["--held-out-task", "{colors}"], "is in --data and a held-out task"),
    (["--template", "colors=Say {{prompt}}"], "the template must hold no braces"),
    (["--data", "{texts}", "--template", "texts=Say {prompt}"], "a template phrases the prompts of lines with"),
    (["--data", "{places}", "--template", "colors=Say {prompt}", "--eval-data", "{valid}"],
     "Say whose: --eval-data TASK="),
    (["--eval-data", "{valid}", "--eval-data", "colors={valid}", "--data", "valid={places}", "--eval-data",
      "valid={valid}"], "there is an evaluation set 'valid' already"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_what_cannot_be_mixed(base: Path, mixture: dict[str, Path], tmp_path: Path, arguments: list[str], said: str,
                              capsys: pytest.CaptureFixture[str]) -> None:
    copy, texts = tmp_path / "copy.jsonl", tmp_path / "texts.jsonl"
    copy.write_bytes(mixture["colors"].read_bytes())
    lines(texts, [{"text": f"the red cat {word}"} for word in "a b c d e".split()])
    known = {**mixture, "copy": copy, "texts": texts}
    words = []
    for word in arguments:
        for name, path in known.items():
            word = word.replace(f"{{{name}}}", str(path))
        words.append(word)
    assert call("train", "lora", "--base", base, "--data", mixture["colors"], "--out", tmp_path / "run", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
