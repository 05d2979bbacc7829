"""Which nodes of a graph a provider takes, by the tables in providers/, and how much of the matrix work those are.

A table says what the provider's own documentation and source say, with where they say it. It is no proof: that is the
device itself. What it does not list is counted as falling back to the processor.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeft.contract.device import Device
from edgeft.contract.errors import EdgeftError, Faults

from .nodes import fixed_size

FOLDER = Path(__file__).with_name("providers")
ENOUGH = 0.95  # of the matrix work: with less on the accelerator, the processor alone is no slower


@dataclass(frozen=True)
class Rule:
    """What one operator must keep to."""

    constant: tuple[int, ...] = ()  # inputs that must be constants
    types: tuple[str, ...] = ()  # of its first input, where they differ from the table's
    rank: tuple[int, int] | None = None  # fewest and most axes of its first input
    attributes: Mapping[str, list[Any]] = field(default_factory=dict)  # name -> values that are taken
    multiples: Mapping[str, int] = field(default_factory=dict)  # name -> must be a multiple of this
    divides: Mapping[str, str] = field(default_factory=dict)  # name -> attribute that it must divide
    blocked: bool = True  # whether quantized in blocks is taken
    whole: bool = False  # whether blocks must be whole: a multiple of them in the first input's quantized axis


@dataclass(frozen=True)
class Table:
    """What one provider takes; named after its file."""

    name: str
    provider: str
    device_type: str  # where a provider serves several kinds of device, which of them
    shapes: str  # "dynamic" | "static"
    integers: str  # the operator that integer weights are stored for
    types: tuple[str, ...]
    rank: int
    operators: Mapping[str, Rule]
    sources: tuple[str, ...]


def table_for(device: Device) -> Table | None:
    """The table of a device's provider; None for providers that take ONNX Runtime's own operators."""
    for table in tables():
        wanted = device.run.options.get("device_type", table.device_type)
        if (table.provider, table.device_type) == (device.run.provider, wanted):
            return table
    return None


def tables() -> list[Table]:
    """All of them."""
    return [read_table(path) for path in sorted(FOLDER.glob("*.toml"))]


def is_standard(device: Device) -> bool:
    """Whether graphs for a device are to be of standard operators."""
    return device.graph.static or any(table.provider == device.run.provider for table in tables())


def integer_operator(device: Device) -> str:
    """How integer weights are stored where operators are standard ones otherwise."""
    table = table_for(device)
    return table.integers if table is not None else "DequantizeLinear"


def read_table(path: Path) -> Table:
    """One table, its rules checked; EdgeftError names what it cannot read."""
    stored = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        rules = {name: Rule(**_tuples(rule)) for name, rule in stored.pop("operators").items()}
        return Table(name=path.stem, operators=rules, **_tuples(stored))
    except (TypeError, KeyError) as error:
        raise EdgeftError(f"{path}: is no table of a provider ({error})") from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def check_graph(model: ir.Model, table: Table) -> dict[str, Any]:
    """What of a graph of fixed shapes is placed: nodes, multiply-adds, and what falls back and why."""
    reasons = {node: _refused(node, table) for node in model.graph}
    for node in model.graph:  # in order: a weight's own nodes stand before the product that reads it
        if not reasons[node] and matrix_work(node):
            reasons[node] = _weight_refused(node, reasons)
    fallen: dict[tuple[str, str], list[int]] = {}
    for node, reason in reasons.items():
        if reason:
            fallen.setdefault((node.op_type, reason), []).append(matrix_work(node))
    total = sum(matrix_work(node) for node in reasons)
    lost = sum(sum(works) for works in fallen.values())
    rows = [{"operator": name, "nodes": len(works), "share": round(sum(works) / max(total, 1), 6), "reason": reason}
            for (name, reason), works in sorted(fallen.items(), key=lambda item: -sum(item[1]))]
    return {"nodes": len(reasons), "placed": sum(not reason for reason in reasons.values()),
            "multiply_adds": total, "share": round(1 - lost / max(total, 1), 6), "fallback": rows}


def matrix_work(node: ir.Node) -> int:
    """Multiply-adds of a matrix product; 0 for every other node."""
    if node.op_type not in ("MatMul", "MatMulNBits"):
        return 0
    read, out = node.inputs[0], node.outputs[0]
    if read is None or read.shape is None or out.shape is None:
        raise EdgeftError(f"{node.name}: has no known shape, so its work cannot be told.")
    return math.prod(int(str(size)) for size in out.shape) * int(str(read.shape[len(read.shape) - 1]))


def _refused(node: ir.Node, table: Table) -> str:
    """Why the provider does not take a node; empty if it does."""
    name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    rule = table.operators.get(name)
    if rule is None:
        return "not among its operators"
    first = node.inputs[0] if node.inputs else None
    if first is not None and first.dtype is not None and first.dtype.name not in (rule.types or table.types):
        return f"of {first.dtype.name}"
    shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None]
    if any(shape is not None and len(shape) > table.rank for shape in shapes):
        return f"more than {table.rank} axes"
    if rule.rank and first is not None and first.shape is not None \
            and not rule.rank[0] <= len(first.shape) <= rule.rank[1]:
        return f"{len(first.shape)} axes"
    for index in rule.constant:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.const_value is None:
            return f"its input {index} is no constant"
    return _attributes_refused(node, rule)


def _attributes_refused(node: ir.Node, rule: Rule) -> str:
    found = {name: attribute.value for name, attribute in node.attributes.items()}
    for name, taken in rule.attributes.items():
        if name in found and found[name] not in taken:
            return f"{name} {found[name]}"
    for name, step in rule.multiples.items():
        if found.get(name, 0) % step:
            return f"{name} {found[name]} is no multiple of {step}"
    for name, other in rule.divides.items():
        if found[other] % found[name]:
            return f"{name} {found[name]} does not divide {other} {found[other]}"
    block = found.get("block_size", 0)
    if block and not rule.blocked:
        return "quantized in blocks"
    if block and rule.whole and (size := fixed_size(node.inputs[0], found.get("axis", 1))) % block:
        return f"{size} rows are no whole number of blocks of {block}"
    return ""


def _weight_refused(node: ir.Node, reasons: Mapping[ir.Node, str]) -> str:
    """A product whose weight a fallen node makes at every pass is no better than one that fell itself."""
    value = node.inputs[1]
    while value is not None and _is_weight(value) and value.producer() is not None:
        producer = value.producer()
        assert producer is not None
        if reasons[producer]:
            return f"its weight comes from {producer.op_type}, which falls back: {reasons[producer]}"
        value = producer.inputs[0]
    return ""


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is stored, or made of stored ones alone."""
    producer = value.producer()
    if producer is None:
        return value.const_value is not None
    return all(item is None or _is_weight(item) for item in producer.inputs)


def check_enough(device: Device, table: Table, reports: Mapping[str, Mapping[str, Any]], quant: str) -> None:
    """EdgeftError where too little of the matrix work is placed to be worth the accelerator."""
    faults = Faults(f"{device.name}: {table.provider} would leave too much of the matrix work to the processor")
    for file, report in reports.items():
        if report["share"] < ENOUGH:
            worst = report["fallback"][0]
            faults.add(f"{file}, share of the matrix work placed", declared=f"at least {ENOUGH:.0%}",
                       found=f"{report['share']:.1%} ({worst['nodes']} {worst['operator']}: {worst['reason']})")
    integers = "Choose --quant fp16 or fp32, which need no operator for integer weights, or where blocks are the " \
               "reason a device file with another [graph] block."
    faults.raise_if_any(integers if quant.startswith("int") else "Choose another device.")


def describe(placement: Mapping[str, Any]) -> list[str]:
    """The check of a bundle's graphs, in lines for a person."""
    lines = []
    for file, report in placement.get("graphs", {}).items():
        lines.append(f"  {file}: by its table {placement['provider']} takes {report['share']:.1%} of the matrix work, "
                     f"{report['placed']} of {report['nodes']} nodes")
        lines += [f"    falls back: {item['nodes']} {item['operator']} ({item['reason']}), {item['share']:.1%} of the "
                  "matrix work" for item in report["fallback"]]
    return lines
