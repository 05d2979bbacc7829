"""A device file: what a device has and what it wants, as TOML; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import EdgeftError, Faults, did_you_mean
from .opening import Refused, open_plain, read_bounded

if TYPE_CHECKING:
    from .grid import Quant

MAX_FILE = 64 << 10
MOST_DOTS = 100  # in a line: tomllib's memory grows with the square of a key's parts
MOST = 1 << 40  # of any size or speed; neither infinite nor NaN
QUANTS = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class Limits:
    """Memory in MiB, bandwidth in GB/s (sustained reads, as decode sees it), int8 products in 10^9 operations/s."""

    memory_mib: int
    budget_mib: int
    bandwidth_gb_s: float
    int8_gops: float = 0.0  # sustained over a prompt; left out: from cpu.isa and cpu.threads (speed.py)


@dataclass(frozen=True)
class Cpu:
    """The processor that runs what no accelerator takes."""

    arch: str
    isa: list[str]
    threads: int


@dataclass(frozen=True)
class Run:
    """The ONNX Runtime execution provider and its options."""

    provider: str = "CPUExecutionProvider"
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """How a graph for this device is built; quant, block, symmetric and rounding are also training's grid."""

    quant: Literal["fp32", "fp16", "int8", "int4"]
    block: Literal[16, 32, 64, 128, 256]
    context: int
    shapes: Literal["dynamic", "static"] = "dynamic"
    slots: list[Literal["lowrank", "scale", "prefix"]] = field(default_factory=lambda: ["lowrank"])
    symmetric: bool = True
    rounding: Literal["rtn", "mse"] = "rtn"
    chunk: int = 64  # static shapes: tokens of a prompt in one pass
    rank: int = 16  # static shapes: what the adapters of one request may have together

    @property
    def static(self) -> bool:
        """Whether its provider takes graphs of fixed shapes only."""
        return self.shapes == "static"

    def grid(self, kind: str | None = None) -> Quant:
        """How weights are stored here, or in another kind on the same blocks."""
        from .grid import Quant  # which imports numpy, and `edgeft devices` needs none

        return Quant(kind or self.quant, self.block, self.symmetric, self.rounding)


@dataclass(frozen=True)
class Device:
    """One device, as its file says."""

    name: str
    summary: str
    verified: Literal["ran", "emulated", "checked"]
    limits: Limits
    cpu: Cpu
    graph: Graph
    run: Run = field(default_factory=Run)
    sources: list[str] = field(default_factory=list)

    @property
    def browser(self) -> bool:
        """Whether a bundle for it is a web page."""
        return self.cpu.arch == "wasm32"

    def quants(self) -> list[str]:
        """What this device runs: fp16 only where its processor or accelerator computes in it."""
        runs_fp16 = "fp16" in self.cpu.isa or self.run.provider not in ("CPUExecutionProvider", "wasm")
        return [quant for quant in QUANTS if quant != "fp16" or runs_fp16]


def read_device(path: Path) -> Device:
    """Read one device file; EdgeftError lists every unknown, missing or mistyped key in it."""
    path = Path(path)
    try:
        with open_plain(path, MAX_FILE) as stream:
            text = read_bounded(stream, MAX_FILE).decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line holds more than {MOST_DOTS} dots")
        table = tomllib.loads(text)
    except Refused as error:
        raise EdgeftError(f"{path}: {error}") from None
    except OSError as error:
        raise EdgeftError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise EdgeftError(f"{path}: is not TOML ({error})") from None
    faults = Faults(f"{path}: is not a device file")
    graph = table.get("graph")
    if isinstance(graph, dict) and "sources" in graph:  # a list at the end of a file lands in its last table
        table["sources"] = graph.pop("sources")
    if "name" in table:
        faults.add("name: unknown key. The file's own name is the device's")
    device: Device = _build(Device, {**table, "name": path.stem}, "", faults)
    if device and device.limits.budget_mib > device.limits.memory_mib:
        faults.add("limits.budget_mib", declared=device.limits.budget_mib,
                   found=f"more than memory_mib {device.limits.memory_mib}")
    faults.raise_if_any("The keys are described in docs/devices.md.")
    return device


def _build(kind: Any, table: dict[str, Any], where: str, faults: Faults) -> Any:
    hints = typing.get_type_hints(kind)
    values, complete = {}, True
    for key in table.keys() - hints.keys():
        faults.add(f"{where}{key}: unknown key.{did_you_mean(key, list(hints))}")
    for item in dataclasses.fields(kind):
        name = f"{where}{item.name}"
        if item.name not in table:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                faults.add(f"{name}: missing")
                complete = False
            continue
        value, wanted = table[item.name], hints[item.name]
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, dict):
                faults.add(name, declared=repr(value), found="must be a table")
            value = _build(wanted, value, f"{name}.", faults) if isinstance(value, dict) else None
            complete = complete and value is not None
        elif not _fits(value, wanted):
            faults.add(name, declared=repr(value), found=f"must be {_describe(wanted)}")
            complete = False
        values[item.name] = value
    return kind(**values) if complete else None


def _fits(value: Any, wanted: Any) -> bool:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if wanted in (int, float):  # sizes and speeds: a bool or a negative one is a mistake
        return isinstance(value, (int, float) if wanted is float else int) and value is not True and 0 < value < MOST
    return isinstance(value, wanted)


def _describe(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(wanted))
    if isinstance(wanted, types.GenericAlias):
        return str(wanted)
    return f"a positive {wanted.__name__}" if wanted in (int, float) else f"a {wanted.__name__}"
