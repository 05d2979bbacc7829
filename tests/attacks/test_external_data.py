"""External data of a graph: only the bundle's own file of weights, within it, and as long as the tensor's shape says.

CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446, CVE-2026-34447, and what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Refusal
from .forge import an_external, change_graphs, entries, stranger

Edit = Callable[[Any], Any]
LOCATIONS = [
    "../secret",
    "/etc/passwd",
    "{secret}",
    "adapters/../../secret",
    "./model.onnx.data",
    "model.onnx.data\0x",
    "*/_ORT_MEM_ADDR_/*",
    "model.onnx",
    "tokenizer.json",
    "bundle.json",
    "file:///etc/passwd",
    "\\\\server\\share\\x",
    "C:\\secret",
    "MODEL.ONNX.DATA",
    "",
    "adapters/colors.safetensors",
]
HUGE = str((1 << 63) - 1)
ENTRIES: dict[str, dict[str, str | None]] = {
    "offset past the end": {"offset": "1000000000"},
    "length past the end": {"length": "1000000000"},
    "offset that overflows": {"offset": HUGE},
    "offset of 64 bits": {"offset": str((1 << 64) - 4)},
    "offset below zero": {"offset": "-4"},
    "length below zero": {"length": "-1"},
    "offset in words": {"offset": "four"},
    "offset with a sign": {"offset": "+0"},
    "offset in other digits": {"offset": "\u0663"},
    "hex": {"offset": "0x10"},
    "spaces": {"offset": " 0"},
    "no length": {"length": None},
    "length of nothing": {"length": "0"},
    "no location": {"location": None},
    "an unknown key": {"basepath": "/etc"},
    "prepacked": {"prepacked_0": "MatMulNBits+1|0;4;0"},
    "many digits": {"offset": "1" * 5000},
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_file_that_is_not_the_bundles(mine: Path, tmp_path: Path, refused: Refusal, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    said = location.replace("{secret}", str(tmp_path / "secret"))
    change_graphs(mine, lambda model: entries(an_external(model), location=said))
    refused("load", mine, r"its data lies in .*only 'model\.onnx\.data' may hold it")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_place_that_cannot_be(mine: Path, refused: Refusal, name: str) -> None:
    change_graphs(mine, lambda model: entries(an_external(model), **ENTRIES[name]))
    refused("load", mine, "is no number|bytes|its data lies in ''|external data with")


def in_attribute(model: Any) -> None:
    from onnx import helper

    model.graph.node.append(helper.make_node("Constant", [], ["stranger"], value=stranger("../secret")))


def in_attributes(model: Any) -> None:
    from onnx import helper

    model.graph.node.append(helper.make_node("Constant", [], ["stranger"]))
    attribute = model.graph.node[-1].attribute.add(name="many")
    attribute.tensors.append(stranger("../secret"))


def a_branch(tensor: Any) -> Any:
    from onnx import TensorProto, helper

    return helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.UINT8, [4])],
        [tensor],
    )


def in_subgraph(model: Any) -> None:
    from onnx import helper

    deeper = a_branch(stranger("../secret", "inner"))
    outer = a_branch(stranger("model.onnx.data", "inner"))
    outer.node.append(helper.make_node("If", ["c"], ["v"], then_branch=deeper, else_branch=deeper))
    model.graph.node.append(helper.make_node("If", ["c"], ["v"], then_branch=outer, else_branch=outer))


def in_subgraphs(model: Any) -> None:
    model.graph.node[0].attribute.add(name="many").graphs.append(a_branch(stranger("../secret", "inner")))


def in_function(model: Any) -> None:
    from onnx import helper

    node = helper.make_node("Constant", [], ["y"], value=stranger("../secret"))
    model.functions.append(helper.make_function("com.microsoft", "Ours", [], ["y"], [node], []))


def in_default(model: Any) -> None:
    from onnx import AttributeProto, helper

    function = helper.make_function("com.microsoft", "Ours", [], ["y"], [], [])
    function.attribute_proto.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=stranger("../secret")))
    model.functions.append(function)


def in_training(model: Any) -> None:
    model.training_info.add().algorithm.initializer.append(stranger("../secret"))


def in_sparse(model: Any) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(stranger("../secret"))


def in_sparse_attribute(model: Any) -> None:
    attribute = model.graph.node[0].attribute.add(name="sparse")
    attribute.sparse_tensor.values.CopyFrom(stranger("../secret"))


def twice(model: Any) -> None:
    an_external(model).external_data.add(key="location", value="../secret")


def elsewhere_and_here(model: Any) -> None:
    an_external(model).raw_data = b"here"


def not_marked(model: Any) -> None:
    an_external(model).data_location = 0


def marked_without(model: Any) -> None:
    del an_external(model).external_data[:]


HIDING: list[tuple[Edit, str]] = [
    (in_attribute, r"'\.\./secret'"),
    (in_attributes, r"'\.\./secret'"),
    (in_subgraph, r"'\.\./secret'"),
    (in_subgraphs, r"'\.\./secret'"),
    (in_function, r"'\.\./secret'"),
    (in_default, r"'\.\./secret'"),
    (in_training, "training"),
    (in_sparse, "sparse"),
    (in_sparse_attribute, "sparse"),
    (twice, "one twice"),
    (elsewhere_and_here, "here and elsewhere"),
    (not_marked, "here and elsewhere"),
    (marked_without, "lies in ''"),
]


@pytest.mark.parametrize(("edit", "reason"), HIDING, ids=[edit.__name__ for edit, _ in HIDING])
def test_wherever_a_tensor_stands(mine: Path, refused: Refusal, edit: Edit, reason: str) -> None:
    change_graphs(mine, edit)
    refused("load", mine, reason)


def test_a_graph_that_is_opened_later(mine: Path, refused: Refusal) -> None:
    """The graph for adapters with scales is opened when the first of them comes; `verify` walks it before."""
    import onnx

    from .forge import put

    model = onnx.load(str(mine / "model.scale.onnx"), load_external_data=False)
    entries(an_external(model), location="../secret")
    put(mine, "model.scale.onnx", model.SerializeToString())
    refused("verify", mine, r"'\.\./secret'")
