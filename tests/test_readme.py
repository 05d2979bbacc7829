"""The README is true: its commands parse, its tree is the repository, its demo does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from edgeft.cli import cli
from tests.conftest import edgeft

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    return [line for line in README.splitlines() if line.startswith("edgeft ")]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    """Every command with its flags, and the flags named in the remark behind it."""
    words = shlex.split(line, comments=True)[1:]
    context = click.Context(cli)
    command: click.Command | None = cli
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
    assert command is not None
    known = {flag for item in command.params for flag in item.opts}
    assert set(re.findall(r"--[a-z-]+", line)) <= known
    command.make_context("edgeft", list(words))


def test_the_tree_is_the_repository() -> None:
    tree = README.split("## Files")[1]
    listed = set(re.findall(r"^ +(\w+\.py) ", tree, re.MULTILINE))
    found = {path.name for path in (ROOT / "edgeft").rglob("*.py") if "starter" not in path.parts}
    assert found - {"__init__.py", "__main__.py"} == listed
    for folder in re.findall(r"^ +(\w+)/ ", tree, re.MULTILINE):
        assert list(ROOT.glob(folder)) + list((ROOT / "edgeft").rglob(folder)), folder


def test_the_changelog_names_this_version() -> None:
    from edgeft import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    done = edgeft("demo", "--out", tmp_path / "demo")
    found = re.search(r"exact match, held out +([\d.]+)% before, ([\d.]+)% with the adapter", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 5
    assert float(found[2]) >= 90
    assert "greedy answers equal 6/6" in done.stdout
    again = edgeft("run", tmp_path / "demo" / "bundle", "--prompt", "set a timer for ten minutes")
    assert '"intent": "set_timer"' in again.stdout
