"""docs/multitask.md is true: its TOML trains, its commands parse, its flags say the same as its tables."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
import warnings
from pathlib import Path

import click
import pytest

from edgeft.cli import cli, main
from edgeft.train.tasks import resolve_tasks
from tests.conftest import lines, pairs

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "multitask.md").read_text()
TOML = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1]  # type: ignore[index]


def test_the_example_trains(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("facts", "facts-valid", "commands", "questions")):
        lines(tmp_path / f"{name}.jsonl", pairs(16, start=16 * index))
    (tmp_path / "mixture.toml").write_text(TOML.replace('"starter"', json.dumps(str(base))))
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main(["train", "lora", "--config", "mixture.toml", "--out", "run", "--max-steps", "2"])
    assert ended.value.code == 0
    assert "questions (never trained on)" in capsys.readouterr().out
    assert set(json.loads(Path("run/edgeft.json").read_text())["prompt"]["templates"]) == {"facts", "commands"}


def test_flags_and_tables_say_the_same() -> None:
    words = shlex.split(re.search(r"win over the file: `(.*?)`", TEXT, re.DOTALL)[1])  # type: ignore[index]
    given: dict[str, list[str]] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        given.setdefault(flag.removeprefix("--").replace("-", "_"), []).append(value)
    tables, _ = resolve_tasks([tomllib.loads(TOML)], "doc")
    commands = next(task for task in tables if task.name == "commands")
    given["template"].append(f"commands={commands.template}")  # the page shows one of the two
    assert resolve_tasks([given], "doc")[0] == tables


@pytest.mark.parametrize("line", re.findall(r"^edgeft .*", TEXT, re.MULTILINE))
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    context, command = click.Context(cli), cli
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found  # type: ignore[assignment]
    command.make_context("edgeft", list(words))
