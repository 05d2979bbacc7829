"""A broken plugin is a row with its reason; the good ones work on."""

import json
from importlib.metadata import EntryPoint

import pytest

from edgeft import cli, plugins
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.plugins import discover, method_faults

HEAD = """
import dataclasses
from edgeft.contract import Lowered, Method
from edgeft.hookspecs import hookimpl

@dataclasses.dataclass(frozen=True)
class Options:
    size: int = dataclasses.field(default=1, metadata={"help": "Size."})

class Good(Method[Options]):
    name, summary, Options = "NAME", "A method.", Options
    def attach(self, model, options): return model
    def collect(self, model): return {}
    def lower(self, learned, options, base): return Lowered()
"""
OFFER = """
@hookimpl
def register_methods(register):
    register(METHOD)
"""
COMMAND = """
import click
@hookimpl
def register_commands(cli):
    cli.add_command(click.Command("NAME", callback=lambda: click.echo("hello of NAME")))
"""
GOOD = HEAD + OFFER.replace("METHOD", "Good()")
count = iter(range(1000))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(name, source) -> an entry point of a module of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def entry_point(name, source):
        module = f"edgeft_fake_{next(count)}"
        (tmp_path / f"{module}.py").write_text(source.replace("NAME", name))
        return EntryPoint(name, module, "edgeft")

    return entry_point


def row(host, name):
    return next(plugin for plugin in host.plugins if plugin.name == name)


def only_error(host, name):
    assert len(row(host, name).errors) == 1, row(host, name).errors
    return row(host, name).errors[0]


def method_source(old="", new="", more=""):
    assert old in GOOD
    return GOOD.replace(old, new, 1) + more


def test_a_good_plugin(make):
    host = discover([make("good", GOOD)])
    assert row(host, "good").methods == ["good"]
    assert row(host, "good").errors == []
    assert host.method("good").summary == "A method."


BROKEN = {
    "raises at import": ("raise RuntimeError('no luck\\nmore')", "RuntimeError: no luck"),
    "exits at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "imports what is not there": ("import edgeft_nothing_there", "ModuleNotFoundError"),
    "does not parse": ("def f(:", "SyntaxError"),
    "exits in the hook": (HEAD + OFFER.replace("register(METHOD)", "raise SystemExit('bye')"), "SystemExit: bye"),
    "raises in the hook without words": (HEAD + OFFER.replace("register(METHOD)", "assert False"), "no message"),
    "misspells a hook": (HEAD + "@hookimpl\ndef register_method(register): ...\n", "register_method"),
    "lacks a face": (method_source("    def collect(self, model): return {}\n"), "collect"),
    "offers a class": (HEAD + OFFER.replace("METHOD", "Good"), "takes an instance"),
    "offers nothing of ours": (HEAD + OFFER.replace("METHOD", "object()"), "is not an edgeft.contract.Method"),
    "has no summary": (method_source('"A method."', '""'), "has no summary"),
    "has no name": (method_source('"NAME"', "None"), "has no name"),
    "has an option without default": (method_source("default=1, "), "Options.size has no default"),
    "has an option without help": (method_source(', metadata={"help": "Size."}'), "Options.size has no metadata"),
    "has options of another kind": (method_source("size: int", "size: set"), "cannot be a flag"),
    "has options that are no dataclass": (method_source("@dataclasses.dataclass(frozen=True)\n"), "not a dataclass"),
    "offers a device that is not there": (
        "from edgeft.hookspecs import hookimpl\n@hookimpl\ndef register_devices(register): register('/no/x.toml')\n",
        "/no/x.toml: is not a .toml file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_a_row_and_the_others_work(make, case):
    source, reason = BROKEN[case]
    host = discover([make("first", GOOD), make("broken", source), make("last", GOOD)])
    assert reason in only_error(host, "broken")
    assert "\n" not in only_error(host, "broken")
    assert row(host, "broken").methods == []
    assert sorted(host.methods) == ["first", "last"]
    assert row(host, "first").errors == row(host, "last").errors == []


def test_a_misspelt_argument_is_named(make):
    host = discover([make("broken", HEAD + "@hookimpl\ndef register_methods(registre): ...\n")])
    assert "registre" in only_error(host, "broken")


def test_a_keyboard_interrupt_is_the_users(make):
    with pytest.raises(KeyboardInterrupt):
        discover([make("x", "raise KeyboardInterrupt")])


def test_a_name_that_is_taken_names_both(make):
    host = discover([make("one", GOOD), make("two", GOOD.replace("NAME", "one"))])
    error = only_error(host, "two")
    assert "method 'one'" in error
    assert "plugin 'one'" in error
    assert "plugin 'two'" in error
    assert host.methods["one"].__class__.__module__ == row(host, "one").module.__name__


def test_one_bad_method_of_a_plugin_does_not_take_the_good_one_along(make):
    source = GOOD.replace("register(Good())", "register(Good); register(Good())")
    host = discover([make("mixed", source)])
    assert row(host, "mixed").methods == ["mixed"]
    assert "takes an instance" in only_error(host, "mixed")


def test_all_faults_of_a_method_are_listed():
    faults = " ".join(method_faults(object()))
    for word in ("attach", "collect", "lower", "merge", "name", "summary", "Options"):
        assert word in faults


def test_first_party_methods_have_no_faults():
    host = discover()
    assert {"lora", "full"} <= set(host.methods)
    assert all(method_faults(method) == [] for method in host.methods.values())
    assert [plugin.errors for plugin in host.plugins] == [[]] * len(host.plugins)
    assert host.method_for_peft("LORA").name == "lora"
    assert host.method_for_peft("NOTHING") is None


def test_a_method_or_device_that_is_not_there(make):
    host = discover([make("good", GOOD)])
    with pytest.raises(UsageError, match=r"There is no method 'godo'. Did you mean 'good'"):
        host.method("godo")
    with pytest.raises(UsageError, match="There is no device 'x'"):
        host.device("x")
    with pytest.raises(EdgeftError, match="cannot be read"):
        host.device("none.toml")


def test_a_method_of_a_broken_plugin_says_why(make):
    host = discover([make("wanted", "raise RuntimeError('no luck')")])
    with pytest.raises(UsageError, match="Plugin 'wanted' is broken: RuntimeError: no luck"):
        host.method("wanted")


def test_a_broken_method_says_why_whatever_its_plugin_is_called(make):
    host = discover([make("other", method_source('"NAME"', '"wanted"').replace("default=1, ", ""))])
    assert "method 'wanted'" in only_error(host, "other")
    with pytest.raises(UsageError, match="has no default"):
        host.method("wanted")


DEVICES = """
from pathlib import Path
from edgeft.hookspecs import hookimpl

@hookimpl
def register_devices(register):
    for path in sorted(Path("FOLDER").glob("*.toml")):
        register(path)
"""


@pytest.fixture
def command_line(make, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr), with good, broken and device plugins as the only ones."""
    folder = tmp_path / "devices"
    folder.mkdir()
    good = next(path for path in discover().devices.values() if path.stem == "cpu-x86_64")
    (folder / "fine.toml").write_text(good.read_text())
    (folder / "odd.toml").write_text("summary = 3")
    points = [make("good", GOOD + COMMAND.replace("NAME", "hello")), make("bad", "raise RuntimeError('no luck')"),
              make("boards", DEVICES.replace("FOLDER", str(folder))),
              make("greedy", "from edgeft.hookspecs import hookimpl" + COMMAND.replace("NAME", "train")),
              make("rude", "from edgeft.hookspecs import hookimpl" + COMMAND.replace("cli.add", "raise SystemExit#"))]
    host = discover(points)
    monkeypatch.setattr(plugins, "host", lambda: host)
    monkeypatch.setattr(cli.cli, "commands", {name: command for name, command in cli.cli.commands.items()
                                              if command.callback.__module__.startswith("edgeft.")})

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


def test_plugins_command(command_line):
    code, out, _ = command_line("plugins")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["good"].endswith("ok")
    assert "good, hello" in lines["good"]
    assert "BROKEN: RuntimeError: no luck" in lines["bad"]
    assert "fine, odd" in lines["boards"]
    assert "command 'train' of plugin 'greedy'" in lines["greedy"]
    assert "taken by edgeft itself" in lines["greedy"]
    assert "SystemExit" in lines["rude"]


def test_plugins_command_as_json(command_line):
    code, out, _ = command_line("plugins", "--json")
    rows = {item["name"]: item for item in json.loads(out)["plugins"]}
    assert code == 0
    assert rows["good"] == {"name": "good", "source": rows["good"]["source"], "methods": ["good"], "devices": [],
                            "commands": ["hello"], "errors": []}
    assert rows["bad"]["errors"] == ["RuntimeError: no luck"]
    assert rows["boards"]["devices"] == ["fine", "odd"]


def test_a_plugins_command_runs_and_a_taken_name_stays_ours(command_line):
    assert command_line("hello")[:2] == (0, "hello of hello\n")
    assert "hello of" not in command_line("train", "--help")[1]


def test_methods_command(command_line):
    code, out, err = command_line("methods")
    assert (code, out.split()) == (0, ["good", "A", "method."])
    assert "broken plugins: bad" in err
    code, out, _ = command_line("methods", "--json")
    assert json.loads(out) == {"good": {"summary": "A method.", "options": ["size"]}}


def test_devices_command(command_line):
    code, out, err = command_line("devices")
    assert code == 0
    assert "fine  ran" in out
    assert "odd   broken" in out
    assert "broken plugins" in err
    found = json.loads(command_line("devices", "--json")[1])
    assert found["fine"]["verified"] == "ran"
    assert "summary  declared 3" in found["odd"]["summary"]


def test_devices_command_with_a_name(command_line):
    code, out, _ = command_line("devices", "fine")
    assert code == 0
    assert out.startswith("summary = ")
    code, out, err = command_line("devices", "odd")
    assert (code, out) == (1, "")
    assert "is not a device file" in err
    code, out, err = command_line("devices", "fien")
    assert (code, out) == (2, "")
    assert "Did you mean 'fine'" in err


def test_train_help_lists_the_plugins_method(command_line):
    assert "good" in command_line("train", "--help")[1]
    assert "--size INT" in command_line("train", "good", "--help")[1]


def test_a_fault_is_noted_once(make, monkeypatch):
    host = discover([make("greedy", "from edgeft.hookspecs import hookimpl" + COMMAND.replace("NAME", "train"))])
    monkeypatch.setattr(plugins, "host", lambda: host)
    for _ in range(3):
        cli.cli.list_commands(None)
    assert len(row(host, "greedy").errors) == 1
