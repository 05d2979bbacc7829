"""A base graph that others made: an ONNX decoder by optimum, Olive, onnx-community or GenAI's model builder.

Only its structure is taken. Each of its weights must be found, by its numbers, among the tensors of the base; from then
on that tensor stands in its place, so that merging, quantizing, slots and the proof against torch go on as with a graph
that was built here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.slots import Array

from .given_forms import Kinds
from .given_inputs import give_contract
from .graph import BaseGraph, Origin
from .match import TOLERANCES, Failed, Match, Matcher, Part
from .nodes import constant
from .plain import make_plain
from .weights import Source

DOMAINS = ("", "ai.onnx", "com.microsoft")
OLDEST = 13  # opset from which on axes and sizes are inputs, as in the nodes that are added here
BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")  # in some files, and no weights
MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError)  # sizes, attributes, inputs
SHOWN = 12  # lines of a refusal
LOOKUP, PRODUCT, OTHER = "lookup", "product", "other"
Use = tuple[ir.Node, int]


def given_graph(path: Path, config: Any, source: Source) -> BaseGraph:
    """Read a decoder and find its weights in the base; EdgeftError lists all that does not match."""
    model = read_graph(path)
    who = path.name
    try:
        origins = _Weights(who, model.graph, _plain(who, model), source).place()
        give_contract(who, model.graph, config)
        _hold(model.graph, origins)
    except MALFORMED as error:
        raise EdgeftError(f"{who}: is not as ONNX asks ({type(error).__name__}: {str(error)[:200]}). Export it "
                          "again.") from None
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    shared = any(node.op_type == "GroupQueryAttention" for node in model.graph)
    return BaseGraph(model, origins, "given", "shared" if shared else "growing", "nowhere")


def _plain(who: str, model: ir.Model) -> Kinds:
    try:
        return make_plain(model)
    except EdgeftError as error:
        raise EdgeftError(f"{who}: {error}") from None


def read_graph(path: Path) -> ir.Model:
    """Open an ONNX file whose tensors lie in its own folder and whose operators are known."""
    if not path.is_file():
        raise UsageError(f"--graph {path}: there is no such file.")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's own kinds
        raise EdgeftError(f"{path}: is no ONNX model ({type(error).__name__}).") from None
    faults = Faults(f"{path}: cannot be used")
    domains = {node.domain for graph in (model.graph, *(f.graph for f in model.functions.values()))
               for node in ir.traversal.RecursiveGraphIterator(graph)}
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        faults.add("opset", declared=f"{OLDEST} or newer", found=opset)
    domains -= {domain for domain, _, _ in model.functions}
    for domain in sorted(domains - set(DOMAINS)):
        faults.add(f"operators of {domain!r}", declared="ONNX's own or com.microsoft's", found=domain)
    for node in model.graph:
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for attribute in node.attributes.values()):
            faults.add(f"{node.op_type} {node.name}: graphs within the graph are not read; of a merged decoder take "
                       "the file for generation with a past, before it was merged")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_place(path.parent, value.const_value, faults)
    faults.raise_if_any()
    return model


def _check_place(folder: Path, tensor: ir.ExternalTensor, faults: Faults) -> None:
    """External data must be a plain file beside the graph, and long enough."""
    place = folder / str(tensor.location)
    inside = Path(str(tensor.location)).name == str(tensor.location) and not place.is_symlink()
    if not inside:
        faults.add(f"{tensor.name}: its data lie outside the graph's folder ({str(tensor.location)[:80]!r})")
    elif not place.is_file():
        faults.add(f"{tensor.name}: its data file {place.name} is missing")
    elif (tensor.offset or 0) < 0 or (tensor.offset or 0) + (tensor.length or 0) > place.stat().st_size:
        faults.add(f"{tensor.name}", declared=f"bytes up to {(tensor.offset or 0) + (tensor.length or 0)}",
                   found=f"{place.name} of {place.stat().st_size}")


class _Weights:
    """Puts the base's tensors in the place of the graph's."""

    def __init__(self, who: str, graph: ir.Graph, kinds: Kinds, source: Source) -> None:
        self.who, self.graph, self.kinds, self.source = who, graph, kinds, source
        self.stored = source.stored
        self.matcher = Matcher(self.stored, {name: self.stored.shape(name) for name in self.stored})
        self.origins: dict[str, Origin] = {}
        self.heads = {embedding: head for head, embedding in source.torn.items()}
        self.faults = Faults(f"{who}: is not a graph of this base")
        self._near: set[str] = set()

    def place(self) -> dict[str, Origin]:
        """Replace every weight; EdgeftError lists those that the base does not have, and the base's that it lacks."""
        for value in list(self.graph.initializers.values()):
            tensor = value.const_value
            if value.dtype != ir.DataType.FLOAT or tensor is None or tensor.size < 2 or len(tensor.shape) > 2:
                continue
            roles: dict[str, list[Use]] = {}
            for use in _uses(value):
                roles.setdefault(_role(*use), []).append(use)
            array = np.asarray(tensor.numpy(), np.float32)
            for role in sorted(roles):
                self._place(value, array, role, roles[role])
        for name in self.stored:
            if name not in self.matcher.used | self._near and not BUFFERS.search(name) and not self.matcher.twin(name):
                self.faults.add(f"{name} {list(self.stored.shape(name))}: is nowhere in the graph")
        self.faults.raise_if_any("Name the base that the graph was exported from with --base. A fine-tuned model needs "
                                 "a graph of its own.")
        _untwist(self.graph)
        return self.origins

    def _place(self, value: ir.Value, array: Array, role: str, uses: list[Use]) -> None:
        kind = self.kinds.get(str(value.name), "float")
        needed = role != OTHER and array.ndim == 2
        hint = f"{value.name}.embed_tokens.wte" if role == LOOKUP else str(value.name)
        found, shift = self.matcher.match(array, TOLERANCES[kind], hint), 0
        if isinstance(found, Failed) and array.ndim == 1:  # exporters fold the 1 that gemma's norms add
            found, shift = self.matcher.match(array - 1, TOLERANCES[kind].around(1), hint), 1
        if isinstance(found, Failed):
            if needed:
                self._refuse(f"{value.name} {list(array.shape)}, read by {uses[0][0].name}", found)
            return
        fresh = self._build(found, role)
        if shift:
            one = constant(self.graph, "const.one", np.ones(1, np.float32))
            fresh = self._node("Add", [fresh, one])
        for node, index in uses:
            node.replace_input_with(index, fresh)

    def _refuse(self, what: str, failed: Failed) -> None:
        """Note a weight that is not the base's, with the nearest tensor while it will be shown: that reads much."""
        name, text = self.matcher.nearest(failed) if len(self.faults.lines) < SHOWN else ("", "")
        self._near.add(name)
        self.faults.add(f"{what}: {text}")

    def _build(self, match: Match, role: str) -> ir.Value:
        """The value that stands for a weight: base tensors, one below the other, perhaps turned."""
        values = [self._tensor(part, role) for part in match.parts]
        if len(values) > 1:
            values = [self._node("Concat", values, axis=0)]
        return self._node("Transpose", values, perm=[1, 0]) if match.turned else values[0]

    def _node(self, op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        """A node of the weights alone; where it stands is settled by sorting at the end."""
        made = ir.node(op, inputs, attributes)
        self.graph.append(made)
        return made.outputs[0]

    def _tensor(self, part: Part, role: str) -> ir.Value:
        name = self.heads.get(part.name, part.name) if role == PRODUCT else part.name
        shape = self.stored.shape(part.name)
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        label = name if part.whole else f"{name}[{part.start}:{part.start + part.rows}]"
        if label not in self.origins:
            size = (part.rows, *shape[1:])
            self.origins[label] = Origin(name, size, strides, part.start * strides[0])
            kept = self.graph.initializers.pop(label, None)
            if kept is not None:
                kept.name = f"{label}.given"
                self.graph.register_initializer(kept)
            self.graph.initializers[label] = ir.Value(name=label, shape=ir.Shape(size),
                                                      type=ir.TensorType(ir.DataType.FLOAT))
        return self.graph.initializers[label]


def _uses(value: ir.Value) -> Iterator[Use]:
    for use in list(value.uses()):
        yield use.node, use.idx


def _role(node: ir.Node, index: int) -> str:
    """What a weight is for: looking ids up, or multiplying; through transpositions of it."""
    if node.op_type == "Transpose":
        roles = {_role(*use) for use in _uses(node.outputs[0])}
        return min(roles, default=OTHER)
    if node.op_type == "Gather" and index == 0:
        return LOOKUP
    return PRODUCT if node.op_type == "MatMul" and index == 1 else OTHER


def _untwist(graph: ir.Graph) -> None:
    """A transposition of a transposition is what it was."""
    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if before is None or before.op_type != "Transpose":
            continue
        orders = [list(found) if (found := one.attributes.get_ints("perm", None)) else None for one in (before, node)]
        source = before.inputs[0]
        if source is not None and orders[0] == [1, 0] and orders[1] in ([1, 0], None):
            ir.convenience.replace_all_uses_with(node.outputs[0], source)


def _hold(graph: ir.Graph, origins: dict[str, Origin]) -> None:
    """Constants of the graph itself, in memory: the file that they came from is not part of the bundle."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
            origins.pop(name, None)
        elif name not in origins and value.const_value is not None:
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), dtype=value.dtype, name=name)

