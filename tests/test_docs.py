"""What docs/plugins.md and docs/hooks.md show is true: their code runs, and they name every rule, face and hook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from edgeft import hookspecs
from edgeft.plugins import FACES, discover
from edgeft.testing import RULES, Case, MethodKit, RuleBroken
from tests.conftest import edgeft

ROOT = Path(__file__).resolve().parents[1]
PLUGINS, HOOKS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("plugins.md", "hooks.md"))
HOOK_NAMES = {name for name, value in vars(hookspecs).items() if hasattr(value, "edgeft_spec")}


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def lowrank(tmp_path: Path) -> Path:
    """A folder with the method of docs/plugins.md and its test."""
    method, test = blocks(PLUGINS)
    (tmp_path / "edgeft_lowrank.py").write_text(method)
    (tmp_path / "test_lowrank.py").write_text(test)
    assert len(test.splitlines()) < 15
    return tmp_path


def test_the_method_passes_its_test(lowrank: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-c", os.devnull,
                           f"--rootdir={lowrank}", "-v", str(lowrank)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = set(re.findall(r"::test_(\w+)\S* PASSED", done.stdout))
    assert passed == {name.removeprefix("test_") for name in dir(MethodKit) if name.startswith("test_")}


def test_a_broken_copy_of_it_does_not(lowrank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = '(learned[f"{layer}.A"], learned[f"{layer}.B"])'
    source = blocks(PLUGINS)[0]
    assert right in source
    (lowrank / "edgeft_wrongrank.py").write_text(source.replace(right, right.replace(", ", ", 2 * ")))
    monkeypatch.syspath_prepend(lowrank)
    import edgeft_wrongrank as wrong  # type: ignore[import-not-found]

    with pytest.raises(RuleBroken, match=r"lower\(\) \(lowrank\) is not what was trained"):
        RULES["lowered_equals_torch"](Case(wrong.LowRank(), wrong.LowRankOptions(), "llama"))


@pytest.mark.slow
def test_the_method_trains_and_exports_beside_the_base(lowrank: Path, base: Path, data: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """With an entry point on the path and nothing else."""
    info = lowrank / "edgeft_lowrank-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeft-lowrank\nVersion: 0.1.0\n")
    project = tomllib.loads(blocks(PLUGINS, "toml")[0])["project"]
    (info / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
        for group, points in project["entry-points"].items()))
    monkeypatch.setenv("PYTHONPATH", str(lowrank))
    assert "lowrank" in edgeft("methods").stdout
    edgeft("train", "lowrank", "--base", base, "--data", data, "--out", lowrank / "run", "--epochs", 6, "--lr", 0.03,
           "--layers", "q_proj,down_proj")
    edgeft("export", lowrank / "run", "--device", "cpu-x86_64", "--quant", "fp32", "--out", lowrank / "bundle")
    answers = [edgeft("run", lowrank / "bundle", "--prompt", "the red cat runs a tree", *adapter).stdout
               for adapter in ([], ["--adapter", "none"])]
    assert answers[0] != answers[1]


def test_every_rule_and_face_is_explained() -> None:
    for name in dir(MethodKit):
        if name.startswith("test_"):
            assert f"| `{name.removeprefix('test_')}` |" in PLUGINS
    for face in FACES:
        assert f"| `{face}(" in PLUGINS


def test_every_hook_has_its_section_and_a_plugin_that_uses_it() -> None:
    assert {"register_methods", "register_devices", "register_commands"} <= HOOK_NAMES
    assert set(re.findall(r"^## (\w+)$", HOOKS, re.MULTILINE)) == HOOK_NAMES
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "plugins").glob("*.py")]
    for hook in HOOK_NAMES:
        assert any(f"@hookimpl\ndef {hook}(" in source for source in sources), hook


def test_the_hooks_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    methods, devices, commands = blocks(HOOKS)
    boards = tmp_path / "my_boards"
    boards.mkdir()
    (boards / "__init__.py").touch()
    (boards / "my-board.toml").write_text((ROOT / "devices" / "cpu-x86_64.toml").read_text())
    (tmp_path / "edgeft_docs_example.py").write_text("\n".join([blocks(PLUGINS)[0], methods, devices, commands]))
    monkeypatch.syspath_prepend(tmp_path)
    host = discover([EntryPoint("example", "edgeft_docs_example", "edgeft")])
    cli = click.Group()
    host.add_commands(cli)
    assert host.plugins[0].errors == []
    assert (sorted(host.methods), sorted(host.devices), sorted(cli.commands)) == (["lowrank"], ["my-board"], ["hello"])
    assert host.device("my-board").verified
