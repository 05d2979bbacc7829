"""Folder = stage = allow-list: each stage imports in a fresh process with the others' libraries blocked."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""
TRAIN = {"torch", "transformers", "peft", "accelerate", "safetensors", "tqdm", "huggingface_hub"}
EXPORT = {"onnx", "onnx_ir", "onnxscript", "mobius", "optimum"}
RUN = {"onnxruntime", "tokenizers"}
HOST = {"click", "pluggy"}


def fresh(blocked, code, *arguments):
    """Run code in a new interpreter in which importing any of `blocked` fails."""
    return subprocess.run([sys.executable, "-W", "error", "-c", BLOCKER.format(blocked=blocked) + code, *arguments],
                          capture_output=True, text=True, timeout=60, cwd=ROOT,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})


def modules(folder, package):
    return [f"{package}.{path.stem}" for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]


def import_all(blocked, names):
    assert names
    done = fresh(blocked, "\n".join(f"import {name}" for name in names))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("blocked", sorted(TRAIN | EXPORT | RUN | HOST))
def test_the_blocker_blocks(blocked):
    done = fresh({blocked}, f"import {blocked}")
    assert done.returncode == 1
    assert f"blocked: {blocked}" in done.stderr


def test_contract_imports_numpy_and_the_standard_library():
    import_all(TRAIN | EXPORT | RUN | HOST, ["edgeft.contract", *modules("edgeft/contract", "edgeft.contract")])


def test_contract_itself_imports_no_numpy():
    import_all(TRAIN | EXPORT | RUN | HOST | {"numpy"}, ["edgeft", "edgeft.contract", "edgeft.contract.errors"])


def test_run_imports_the_devices_libraries_alone():
    import_all(TRAIN | EXPORT | HOST | {"llguidance", "cryptography"},
               ["edgeft.run", *modules("edgeft/run", "edgeft.run")])


def test_reports_are_made_where_nothing_is_trained_exported_or_run():
    import_all(TRAIN | EXPORT | RUN, modules("edgeft/report", "edgeft.report"))


def test_run_needs_the_devices_libraries():
    assert "blocked: onnxruntime" in fresh(RUN, "import edgeft.run.model").stderr.replace("tokenizers", "onnxruntime")


ALLOWED = {"contract": {"numpy", "jinja2", "huggingface_hub"},
           "train": {"numpy", "tokenizers"} | TRAIN,
           "export": {"numpy", "tokenizers", "onnxruntime"} | TRAIN | EXPORT,
           "run": {"numpy", "onnxruntime", "tokenizers", "llguidance", "cryptography"}}


def imported(tree):
    """Every module that a file imports, inside functions too, but not for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            yield from imported(node)


@pytest.mark.parametrize("stage", ALLOWED)
def test_no_file_of_a_stage_imports_more_than_its_extra_has(stage):
    for path in sorted((ROOT / "edgeft" / stage).glob("*.py")):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            first, second = (*name.split("."), "")[:2]
            assert first == "edgeft" or first in ALLOWED[stage] | sys.stdlib_module_names, f"{path.name}: {name}"
            assert first != "edgeft" or second not in set(ALLOWED) - {stage, "contract"}, f"{path.name}: {name}"


def test_the_walk_over_imports_sees_all_but_types():
    source = "import a.b\nif TYPE_CHECKING:\n    import c\ndef f():\n    if f: from d import e\nfrom .x import y"
    assert list(imported(ast.parse(source))) == ["a.b", "d.e"]


HEAVY = TRAIN | EXPORT | RUN | {"numpy", "jinja2"}
HELP = "import edgeft.cli\nedgeft.cli.main(sys.argv[1:])"


def test_plugins_import_without_torch():
    import_all(HEAVY, modules("plugins", "edgeft_plugins"))


def test_command_line_imports_no_stage():
    import_all(HEAVY, ["edgeft.cli", "edgeft.plugins", "edgeft.options", "edgeft.hookspecs"])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "lora", "--help"], ["run", "--help"],
                                       ["methods"], ["devices"], ["plugins"], ["--version"]], ids=" ".join)
def test_what_lists_and_helps_imports_no_library(arguments):
    done = fresh(HEAVY, HELP, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_help_lists_every_command():
    text = fresh(HEAVY, HELP, "--help").stdout
    for command in ("demo", "methods", "devices", "plugins", "train", "eval", "export", "add", "remove", "verify",
                    "run", "chat", "bench", "genai", "report", "fit", "pack", "install", "rollback", "sign"):
        assert f"\n  {command} " in text
