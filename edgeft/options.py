"""An option is written once, as a dataclass field: flags, TOML keys, checks and help come from it.

A field has a default and `metadata={"help": "..."}`; `{"flags": ["--rank"]}` adds spellings. Types: bool, int,
float, str, Path, a Literal, `X | None`, `tuple[X, ...]` (flag given repeatedly or comma-separated) and
`dict[str, X]` (key=value).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from edgeft.contract.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import click

OptionsT = TypeVar("OptionsT")


def option_faults(options: type) -> list[str]:
    """What keeps a dataclass from being turned into flags."""
    try:
        hints = typing.get_type_hints(options)
    except Exception as error:
        return [f"Options has types that cannot be resolved ({error})"]
    faults = []
    for item in dataclasses.fields(options):
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f"Options.{item.name} has no default")
        if not item.metadata.get("help"):
            faults.append(f'Options.{item.name} has no metadata={{"help": ...}}')
        if _shape(hints[item.name])[1] is None:
            faults.append(f"Options.{item.name}: {hints[item.name]} cannot be a flag")
    return faults


def _shape(hint: Any) -> tuple[str, Any]:
    """("one" | "many" | "pairs", element type), element None if it cannot be a flag; `| None` is dropped."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return _shape(inner[0]) if len(inner) == 1 else ("one", None)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return "many", _scalar(arguments[0])
    if origin is dict and arguments[0] is str:
        return "pairs", _scalar(arguments[1])
    return "one", _scalar(hint)


def _scalar(hint: Any) -> Any:
    from pathlib import Path

    return hint if hint in (bool, int, float, str, Path) or typing.get_origin(hint) is Literal else None


def default_of(item: dataclasses.Field[Any]) -> Any:
    """The default of a field, made if it has a factory."""
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def click_options(options: type) -> list[click.Option]:
    """One click option per field. Their default is None: `resolve` tells given from default."""
    import click

    hints = typing.get_type_hints(options)
    made = []
    for item in dataclasses.fields(options):
        form, kind = _shape(hints[item.name])
        flag = "--" + item.name.replace("_", "-")
        default = default_of(item)
        help_text = item.metadata["help"] + (f"  [{_shown(default)}]" if default not in (None, "", (), {}) else "")
        spellings = [item.name, *item.metadata.get("flags", ())]
        if kind is bool and form == "one":
            made.append(click.Option([*spellings, f"{flag}/--no-{flag[2:]}"], default=None, help=help_text))
        elif form == "one" and typing.get_origin(kind) is Literal:
            choice = click.Choice([str(value) for value in typing.get_args(kind)])
            made.append(click.Option([*spellings, flag], type=choice, help=help_text))
        else:
            metavar = {"many": "VALUE,...", "pairs": "KEY=VALUE,..."}.get(form, getattr(kind, "__name__", "").upper())
            made.append(click.Option([*spellings, flag], metavar=metavar, help=help_text, multiple=form != "one",
                                     default=None))
    return made


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def resolve(options: type[OptionsT], *layers: Mapping[str, Any], who: str = "") -> OptionsT:
    """Build the dataclass from layers of given values, later ones first in rank; None means not given.

    UsageError names every unknown key and every value that does not fit.
    """
    hints = typing.get_type_hints(options)
    values: dict[str, Any] = {}
    faults: list[str] = []
    for layer in layers:
        for key, value in layer.items():
            name = key.replace("-", "_")
            if name not in hints:
                faults.append(f"there is no option {key!r}.{did_you_mean(name, list(hints))}")
            elif value is not None and value != ():
                try:
                    values[name] = convert(value, hints[name], f"--{name.replace('_', '-')}")
                except UsageError as error:
                    faults.append(str(error))
    if faults:
        raise UsageError(f"{who or options.__name__}: " + "\n  ".join(faults))
    try:
        return options(**values)
    except ValueError as error:
        raise UsageError(f"{who or options.__name__}: {error}") from None


def convert(value: Any, hint: Any, name: str) -> Any:
    """One value, from a flag's text or from TOML or JSON, as the field's type."""
    form, kind = _shape(hint)
    if form == "many":
        if not isinstance(value, (str, list, tuple)):
            raise UsageError(f"{name}: takes a list, found {value!r}")
        items = [value] if isinstance(value, str) else list(value)
        split = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        stripped = [part.strip() if isinstance(part, str) else part for part in split]
        return tuple(_one(item, kind, name) for item in stripped if item != "")
    if form == "pairs":
        if not isinstance(value, Mapping):
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
                raise UsageError(f"{name}: takes KEY=VALUE, found {value!r}")
            value = dict(_pair(part, name) for text in texts for part in text.split(",") if part)
        return {key: _one(item, kind, name) for key, item in value.items()}
    return _one(value, kind, name)


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.rpartition("=")
    if not equals:
        raise UsageError(f"{name}: takes KEY=VALUE, found {text!r}")
    return key.strip(), value.strip()


def _one(value: Any, kind: Any, name: str) -> Any:
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if str(choice) == str(value):
                return choice
        raise UsageError(f"{name}: takes {', '.join(map(str, typing.get_args(kind)))}, found {value!r}")
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise UsageError(f"{name}: takes true or false, found {value!r}")
    if isinstance(value, (bool, list, dict)) or (isinstance(value, float) and kind is int and not value.is_integer()):
        raise UsageError(f"{name}: takes a {_KIND.get(kind, kind.__name__)}, found {value!r}")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name}: takes a {_KIND.get(kind, kind.__name__)}, found {value!r}") from None


_KIND: dict[Any, str] = {int: "whole number", float: "number", str: "text"}


def to_json(options: Any) -> dict[str, Any]:
    """A dataclass of options as plain JSON values."""
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return value if isinstance(value, (bool, int, float, str, dict, type(None))) else str(value)

    return {item.name: plain(getattr(options, item.name)) for item in dataclasses.fields(options)}
