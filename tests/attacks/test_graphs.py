"""Graphs that hold more than arithmetic, or that are no sound files at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Refusal
from .forge import an_external, change_graphs, put, sparse
from .test_external_data import a_branch

Edit = Callable[[Any], Any]


def a_node(domain: str, op_type: str = "Anything") -> Edit:
    def edit(model: Any) -> None:
        from onnx import helper

        model.graph.node.append(helper.make_node(op_type, [], ["stranger"], domain=domain))

    return edit


def inner_node(model: Any) -> None:
    from onnx import TensorProto, helper

    branch = a_branch(helper.make_tensor("inner", TensorProto.UINT8, [1], [1]))
    branch.node.append(helper.make_node("Anything", [], ["w"], domain="evil"))
    model.graph.node.append(helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch))


def a_function(model: Any) -> None:
    from onnx import helper

    model.functions.append(helper.make_function("evil", "Ours", [], ["y"], [], []))


def too_deep(model: Any) -> bytes:
    """A graph in an attribute of a node of a graph, and so on: deeper than protobuf's own writer goes."""
    inner = b""
    for _ in range(40):
        for field in (6, 5, 1):  # attribute.g, node.attribute, graph.node
            inner = bytes([field << 3 | 2]) + number(len(inner)) + inner
    return bytes(model.SerializeToString() + b"\x3a" + number(len(inner)) + inner)


def number(value: int) -> bytes:
    """A varint."""
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def dims(*sizes: int) -> Edit:
    def edit(model: Any) -> None:
        tensor = an_external(model)
        del tensor.dims[:]
        tensor.dims.extend(sizes)

    return edit


def inline_dims(model: Any) -> None:
    from onnx import TensorProto

    model.graph.initializer.append(
        TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234")
    )


def no_such_type(model: Any) -> None:
    an_external(model).data_type = 99


EDITS: list[tuple[str, Edit, str]] = [
    ("custom domain", a_node("evil"), "domain 'evil'"),
    ("extensions", a_node("ai.onnx.contrib"), "ai.onnx.contrib"),
    ("training domain", a_node("ai.onnx.training"), "ai.onnx.training"),
    ("layouts of the runtime", a_node("com.microsoft.nchwc"), "nchwc"),
    ("binaries", a_node("com.microsoft", "EPContext"), "EPContext"),
    ("python", a_node("com.microsoft", "PythonOp"), "PythonOp"),
    ("in a branch", inner_node, "domain 'evil'"),
    ("function", a_function, "domain 'evil'"),
    ("too deep", too_deep, "too deep"),
    ("below zero", dims(-1), "is none"),
    ("overflow", dims(1 << 40, 1 << 40), "is none"),
    ("terabytes", dims(1 << 40), "are not what its shape"),
    ("many dimensions", dims(*[1] * 70), "64 dimensions"),
    ("terabytes at hand", inline_dims, "holds fewer numbers"),
    ("no such type", no_such_type, "no data type 99"),
]


@pytest.mark.parametrize(
    ("edit", "reason"), [(edit, reason) for _, edit, reason in EDITS], ids=[name for name, *_ in EDITS]
)
def test_a_graph_that_holds_more(mine: Path, refused: Refusal, edit: Edit, reason: str) -> None:
    change_graphs(mine, edit)
    refused("load", mine, reason)


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "nothing of a field": lambda data: data + b"\x3a\x7f",
    "a number without end": lambda data: data + b"\xff" * 30,
    "a wire type": lambda data: data + b"\x3b",
    "field number 0": lambda data: data + b"\x02\x01x",
    "a number of 70 bits": lambda data: data + b"\x38" + b"\xff" * 9 + b"\x7f",
    "a graph that is a number": lambda data: b"\x38\x01" + data,
    "text": lambda data: b"#!/bin/sh\necho hello\n" * 9,
    "cut": lambda data: data[: len(data) // 2],
    "a pickle": lambda data: b"\x80\x04\x95" + data,
}


@pytest.mark.parametrize("name", BYTES)
def test_no_sound_file(mine: Path, refused: Refusal, name: str) -> None:
    for graph in ("model.onnx", "model.plain.onnx"):
        put(mine, graph, BYTES[name]((mine / graph).read_bytes()))
    refused("load", mine, "no sound ONNX file|is no message|no graph that can be opened")


def test_a_graph_of_gigabytes(mine: Path, refused: Refusal) -> None:
    from .forge import say

    for graph in ("model.onnx", "model.plain.onnx"):
        sparse(mine / graph, 3 << 30)
        say(mine, lambda manifest, graph=graph: manifest["files"][graph].update(size=3 << 30))
    refused("load", mine, "at most")
