"""The rules that need no model: what a method declares, its options, and that it loads without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any

from edgeft.contract import Method
from edgeft.contract.errors import UsageError
from edgeft.options import click_options, resolve, to_json
from edgeft.plugins import method_faults

from .case import RuleBroken
from .tolerances import tolerance_faults

HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors", "onnxruntime", "onnx", "onnx_ir", "onnxscript",
         "mobius", "optimum", "tokenizers")
LOAD = """
import json, sys
from importlib.metadata import EntryPoint

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ImportError("blocked: " + name + " (import it inside the functions that need it)")

sys.meta_path.insert(0, Blocker())
from edgeft.plugins import discover
host = discover([EntryPoint("plugin", sys.argv[1], "edgeft")])
print(json.dumps({"methods": list(host.methods), "errors": host.plugins[0].errors}))
"""


def declares_what_the_host_asks(method: Method[Any]) -> None:
    """Faces, name, summary, frozen options with defaults and help texts, tolerances with reasons."""
    faults = method_faults(method)
    if not faults and not method.Options.__dataclass_params__.frozen:
        faults.append("Options must be frozen: @dataclass(frozen=True)")
    faults += tolerance_faults(getattr(method, "tolerances", {}))
    if faults:
        raise RuleBroken(f"{getattr(method, 'name', type(method).__name__)}:\n  " + "\n  ".join(faults))


def options_survive_flags_toml_and_json(options: Any) -> None:
    """The same dataclass comes back from the command line, a TOML file and edgeft.json."""
    kind = type(options)
    given = to_json(options)
    for route, values in (("flags", _flags(options)), ("TOML", tomllib.loads(_toml(given))),
                          ("JSON", json.loads(json.dumps(given)))):
        try:
            back = resolve(kind, values)
        except UsageError as error:
            raise RuleBroken(f"{kind.__name__} cannot be given as {route}: {error}") from None
        if back != options:
            changed = [f"{item.name}: {getattr(options, item.name)!r} became {getattr(back, item.name)!r}"
                       for item in dataclasses.fields(kind) if getattr(options, item.name) != getattr(back, item.name)]
            raise RuleBroken(f"{kind.__name__} does not survive {route}:\n  " + "\n  ".join(changed))


def options_leave_shared_flags_alone(kind: type) -> None:
    """No option takes a flag that `edgeft train` has for every method."""
    from edgeft.train_command import SHARED

    taken = {flag for item in SHARED for flag in (*item.opts, *item.secondary_opts)}
    clash = sorted({flag for item in click_options(kind) for flag in (*item.opts, *item.secondary_opts)
                    if flag.startswith("-")} & taken)
    if clash:
        raise RuleBroken(f"{kind.__name__}: `edgeft train` has these flags for every method: {', '.join(clash)}")


def loads_without_torch(method: Method[Any]) -> None:
    """The module imports and registers the method in a process that has none of the big libraries."""
    module = type(method).__module__
    found = _load(module)
    if found["errors"]:
        raise RuleBroken(f"{module}: " + "; ".join(found["errors"]))
    if method.name not in found["methods"]:
        raise RuleBroken(f"{module}: registers {', '.join(found['methods']) or 'no method'}, and not {method.name!r}. "
                         "It needs a function register_methods(register) marked @hookimpl")


@cache
def _load(module: str) -> dict[str, list[str]]:
    """Methods and errors of a plugin module, found by the host in a process without the big libraries."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", LOAD, module, ",".join(HEAVY)], capture_output=True, text=True,
                          check=False, timeout=120, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        return {"methods": [], "errors": [f"cannot be loaded: {done.stderr.strip().splitlines()[-1]}"]}
    answer: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _flags(options: Any) -> dict[str, Any]:
    """Through click, as `edgeft train` reads them."""
    import click

    command = click.Command("train", params=list(click_options(type(options))))
    words = []
    for name, value in to_json(options).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            words += [f"{flag}={key}={item}" for key, item in value.items()]
        elif isinstance(value, list):
            words += [f"{flag}={item}" for item in value]
        elif value is not None:
            words.append(f"{flag}={value}")
    try:
        return command.make_context("train", words).params
    except click.ClickException as error:
        raise RuleBroken(f"{type(options).__name__} cannot be given as flags: {error.format_message()}") from None


def _toml(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {text(item)}" for key, item in value.items()) + "}"
        return json.dumps(value)  # JSON's scalars and lists are TOML's

    return "".join(f"{name} = {text(value)}\n" for name, value in values.items() if value is not None)
