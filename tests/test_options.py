"""One dataclass field is the flag, the TOML key, the check and the help text."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from edgeft.contract.errors import UsageError
from edgeft.options import click_options, default_of, option_faults, resolve, to_json
from edgeft.train.settings import TrainSettings

HERE = Path("x")


def option(default, *flags, **more):
    return field(default=default, metadata={"help": "Help.", "flags": flags}, **more)


@dataclass(frozen=True)
class Options:
    rank: int = option(8, "-r", "--width")
    rate: float = option(0.5)
    fast: bool = option(False, "--quick")
    kind: Literal["a", "b"] = option("a")
    bits: Literal[4, 8] = option(4)
    names: tuple[str, ...] = option(())
    layers: tuple[int, ...] = option((1, 2))
    ranks: dict[str, int] = field(default_factory=dict, metadata={"help": "Ranks."})
    path: Path = option(HERE)
    limit: int | None = option(None)
    title: str = option("")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError("rank must be at least 1")


def parsed(*arguments):
    """What the flags resolve to, or the UsageError that they raise."""
    seen = []
    command = click.Command("x", params=click_options(Options), callback=lambda **given: seen.append(given))
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return resolve(Options, seen[0])


def test_no_flags_are_the_defaults():
    assert parsed() == Options()
    assert resolve(Options) == Options()


@pytest.mark.parametrize(("arguments", "name", "value"), [
    (["--rank", "4"], "rank", 4), (["-r", "4"], "rank", 4), (["--width", "4"], "rank", 4),
    (["--rate", "1e-3"], "rate", 1e-3), (["--rate", "2"], "rate", 2.0),
    (["--fast"], "fast", True), (["--quick"], "fast", True), (["--fast", "--no-fast"], "fast", False),
    (["--kind", "b"], "kind", "b"), (["--bits", "8"], "bits", 8),
    (["--names", "a, b,c"], "names", ("a", "b", "c")), (["--names", "a", "--names", "b"], "names", ("a", "b")),
    (["--layers", "0,5"], "layers", (0, 5)), (["--layers", "0", "--layers", "5"], "layers", (0, 5)),
    (["--ranks", "q=4,v = 8"], "ranks", {"q": 4, "v": 8}), (["--ranks", "a=b=4"], "ranks", {"a=b": 4}),
    (["--ranks", "q=4", "--ranks", "v=8"], "ranks", {"q": 4, "v": 8}),
    (["--path", "/a/b"], "path", Path("/a/b")), (["--limit", "3"], "limit", 3), (["--title", "3"], "title", "3")])
def test_flags(arguments, name, value):
    found = parsed(*arguments)
    assert getattr(found, name) == value
    assert type(getattr(found, name)) is type(value)
    others = {item.name for item in fields(Options)} - {name}
    assert all(getattr(found, other) == getattr(Options(), other) for other in others)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--rank", "x"], "--rank: takes a whole number, found 'x'"), (["--rank", "1.5"], "--rank: takes a whole number"),
    (["--rate", "fast"], "--rate: takes a number, found 'fast'"), (["--layers", "1,x"], "--layers: takes a whole"),
    (["--ranks", "q"], "--ranks: takes KEY=VALUE, found 'q'"), (["--ranks", "q=x"], "--ranks: takes a whole number"),
    (["--rank", "0"], "Options: rank must be at least 1")])
def test_flags_that_are_refused(arguments, said):
    with pytest.raises(UsageError) as caught:
        parsed(*arguments)
    assert said in str(caught.value)


def test_a_choice_that_is_not_there_is_clicks_error():
    command = click.Command("x", params=click_options(Options), callback=lambda **given: None)
    result = CliRunner().invoke(command, ["--kind", "c"])
    assert result.exit_code == 2
    assert "'a', 'b'" in result.output


def test_help_shows_text_and_default():
    text = CliRunner().invoke(click.Command("x", params=click_options(Options)), ["--help"]).output
    for part in ("-r, --width, --rank", "--fast / --no-fast", "[a|b]", "[4|8]", "VALUE,...", "KEY=VALUE,...",
                 "Ranks.", "[8]", "[1,2]", "[0.5]"):
        assert part in text
    assert "[None]" not in text
    assert "[()]" not in text


def test_layers_later_ones_win():
    layers = [{"rank": 2, "rate": 0.1}, {"rank": 3}, {"rank": None, "names": ()}]
    assert resolve(Options, *layers) == Options(rank=3, rate=0.1)
    assert resolve(Options, *reversed(layers)) == Options(rank=2, rate=0.1)


@pytest.mark.parametrize(("layer", "name", "value"), [
    ({"rank": 4}, "rank", 4), ({"rank": 4.0}, "rank", 4), ({"rate": 1}, "rate", 1.0), ({"fast": True}, "fast", True),
    ({"fast": "false"}, "fast", False), ({"fast": "True"}, "fast", True), ({"bits": 8}, "bits", 8),
    ({"layers": ["3", "4"]}, "layers", (3, 4)), ({"names": "a,b"}, "names", ("a", "b")),
    ({"names": ["a"]}, "names", ("a",)),
    ({"ranks": {"q": 4}}, "ranks", {"q": 4}), ({"ranks": "q=4"}, "ranks", {"q": 4}), ({"path": "y"}, "path", Path("y")),
    ({"limit": 7}, "limit", 7)])
def test_toml_values(layer, name, value):
    found = getattr(resolve(Options, layer), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("layer", [
    {"rank": "x"}, {"rank": 1.5}, {"rank": True}, {"rank": [1]}, {"rank": {}}, {"rate": "x"}, {"rate": False},
    {"rate": []}, {"fast": 1}, {"fast": "yes"}, {"fast": []}, {"kind": "c"}, {"kind": 1}, {"bits": 5}, {"bits": [4]},
    {"layers": ["x"]}, {"ranks": {"q": "x"}},
    {"ranks": {"q": 1.5}}, {"ranks": ["q"]}, {"title": True}], ids=str)
def test_toml_values_that_are_refused(layer):
    name = next(iter(layer))
    with pytest.raises(UsageError, match=f"--{name}: takes"):
        resolve(Options, layer)


def test_numbers_in_a_list():
    assert resolve(Options, {"layers": [3, 4]}).layers == (3, 4)


@pytest.mark.parametrize("layer", [{"layers": 3}, {"layers": [1.5]}, {"layers": [True]}, {"layers": [[1]]},
                                   {"names": 1.5}, {"ranks": 5}, {"ranks": [5]}, {"path": True}], ids=str)
def test_toml_values_of_another_shape(layer):
    with pytest.raises(UsageError, match=f"--{next(iter(layer))}: takes"):
        resolve(Options, layer)


@pytest.mark.parametrize("layer", [{"title": ["a"]}, {"title": {"a": 1}}, {"names": [["a"]]}], ids=str)
def test_a_list_is_no_text(layer):
    with pytest.raises(UsageError, match=f"--{next(iter(layer))}: takes"):
        resolve(Options, layer)


@pytest.mark.parametrize(("key", "meant"), [("rnak", "'rank'"), ("layer", "'layers'"), ("ra-te", "'rate'")])
def test_unknown_option_with_a_suggestion(key, meant):
    with pytest.raises(UsageError, match="tool: there is no option") as caught:
        resolve(Options, {key: 1}, who="tool")
    assert repr(key) in str(caught.value)
    assert "Did you mean" in str(caught.value)
    assert meant in str(caught.value)


def test_unknown_option_far_from_all_lists_them():
    with pytest.raises(UsageError, match=r"Known: .*rank"):
        resolve(Options, {"zzzzzz": 1})


def test_all_faults_at_once():
    with pytest.raises(UsageError) as caught:
        resolve(Options, {"rnak": 1, "rate": "x", "fst": True})
    assert all(word in str(caught.value) for word in ("rnak", "--rate", "fst"))


def test_dashes_and_underscores_are_one():
    assert resolve(TrainSettings, {"batch-size": 3}).batch_size == 3
    assert resolve(TrainSettings, {"batch_size": 3}).batch_size == 3


def test_the_trainers_settings_are_sound():
    assert option_faults(TrainSettings) == []
    with pytest.raises(UsageError, match="batch-size must be at least 1"):
        resolve(TrainSettings, {"batch_size": 0})


def test_to_json_is_json_and_resolves_back():
    given = Options(rank=3, names=("a",), ranks={"q": 4}, path=Path("/p"), fast=True, bits=8, limit=2)
    stored = to_json(given)
    assert stored["names"] == ["a"]
    assert stored["path"] == "/p"
    assert stored.pop("layers") == [1, 2]
    assert resolve(Options, stored) == given


def test_default_of_a_factory_is_made_each_time():
    ranks = next(item for item in fields(Options) if item.name == "ranks")
    assert default_of(ranks) == {}
    assert default_of(ranks) is not default_of(ranks)


@dataclass
class NoDefault:
    x: int = field(metadata={"help": "Help."})


@dataclass
class NoHelp:
    x: int = 3


@dataclass
class NoFlag:
    x: list = field(default_factory=list, metadata={"help": "Help."})
    y: int | str = field(default=1, metadata={"help": "Help."})
    z: tuple[int, int] = field(default=(1, 2), metadata={"help": "Help."})


@dataclass
class NoType:
    x: "Nothing" = field(default=1, metadata={"help": "Help."})  # noqa: F821


@pytest.mark.parametrize(("options", "faults"), [
    (NoDefault, ["Options.x has no default"]), (NoHelp, ['Options.x has no metadata={"help": ...}']),
    (NoFlag, ["Options.x", "Options.y", "Options.z"]), (NoType, ["types that cannot be resolved"]), (Options, [])])
def test_faults_of_options(options, faults):
    found = option_faults(options)
    assert len(found) == len(faults)
    assert all(part in text for part, text in zip(faults, found, strict=True))
