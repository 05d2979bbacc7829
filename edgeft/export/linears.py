"""Find every linear layer of a graph, and pack those that read the same input into one product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeft.contract.bundle import SlotGroup

from .graph import BaseGraph, Origin


@dataclass(frozen=True)
class Piece:
    """Some output features of one product: a graph weight, or one of several that stand side by side."""

    weight: str  # name of the graph's initializer
    transposed: bool  # stored [out, in], as torch's Linear does
    module: str  # the Hugging Face module that it belongs to
    out: int


@dataclass
class Linear:
    """A MatMul whose right side comes from weights alone."""

    node: ir.Node
    pieces: list[Piece]
    in_features: int

    @property
    def out(self) -> int:
        """All output features."""
        return sum(piece.out for piece in self.pieces)


@dataclass
class Group:
    """Linears that read one input: one product, then split to where each result was used."""

    linears: list[Linear]

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of all of them, in the order of the packed product's columns."""
        return [piece for linear in self.linears for piece in linear.pieces]

    @property
    def slot(self) -> SlotGroup:
        """The slot that this group offers; pieces of one module that stand together count as one."""
        modules: list[str] = []
        widths: list[int] = []
        for piece in self.pieces:
            if modules and modules[-1] == piece.module:
                widths[-1] += piece.out
            else:
                modules.append(piece.module)
                widths.append(piece.out)
        name = modules[0]
        if len(modules) > 1:
            name = modules[0].rpartition(".")[0] + "." + "-".join(module.rpartition(".")[2] for module in modules)
        return SlotGroup(name, tuple(modules), self.linears[0].in_features, tuple(widths))


def find_groups(base: BaseGraph) -> list[Group]:
    """Every linear layer, grouped by the value that it reads."""
    found: dict[ir.Value, list[Linear]] = {}
    for linear in _linears(base):
        read = linear.node.inputs[0]
        assert read is not None
        found.setdefault(read, []).append(linear)
    return [Group(linears) for linears in found.values()]


def _linears(base: BaseGraph) -> Iterator[Linear]:
    for node in base.model.graph:
        if node.op_type != "MatMul" or node.domain or node.inputs[1] is None:
            continue
        pieces = _pieces(node.inputs[1], True, node, base)
        if pieces:
            first = base.origins[pieces[0].weight].shape
            yield Linear(node, pieces, first[1] if pieces[0].transposed else first[0])


def _pieces(value: ir.Value, wants_in_first: bool, node: ir.Node, base: BaseGraph) -> list[Piece]:
    """Follow a MatMul's right side back through Transpose and Concat to weights; empty if it is anything else."""
    if value.name in base.origins:
        shape = base.origins[value.name].shape
        if len(shape) != 2:
            return []
        transposed = not wants_in_first
        module = _module(value, node, base.origins)
        return [Piece(value.name, transposed, module, shape[0] if transposed else shape[1])]
    producer = value.producer()
    if producer is None:
        return []
    if producer.op_type == "Transpose" and producer.inputs[0] is not None:
        return _pieces(producer.inputs[0], not wants_in_first, node, base)
    if producer.op_type == "Concat" and not wants_in_first and producer.attributes["axis"].as_int() == 0:
        parts = [_pieces(part, wants_in_first, node, base) for part in producer.inputs if part is not None]
        return [piece for part in parts for piece in part] if all(parts) else []
    return []


def _module(weight: ir.Value, node: ir.Node, origins: Mapping[str, Origin]) -> str:
    """The Hugging Face module of a weight; a head that shares the embedding's is named by where it stands."""
    name = origins[str(weight.name)].name.removesuffix(".weight")
    if any(use.node.op_type == "Gather" for use in weight.uses()):
        scopes = _scopes(node)
        return ".".join(scope for scope in scopes if scope) or "lm_head"
    return name


def _scopes(node: ir.Node) -> list[str]:
    import ast

    for key in ("pkg.onnxscript.name_scopes", "pkg.torch.onnx.name_scopes"):
        if key in node.metadata_props:
            scopes = ast.literal_eval(node.metadata_props[key])
            return [str(scope) for scope in scopes] if key.startswith("pkg.onnxscript") else [str(scopes[-2])]
    return []
