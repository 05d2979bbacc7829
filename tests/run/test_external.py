"""The reader of external data's places: it changes what it is told to and nothing else, and refuses what is broken."""

from __future__ import annotations

from typing import Any

import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.run.external import Entries, heaviest_first, rewrite


def a_model() -> Any:
    """A product with an external weight, a branch with one inside, and a plain tensor."""
    from onnx import TensorProto, helper

    def outside(name: str, offset: int) -> Any:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "raw.data", "offset": str(offset), "length": "16",
                           "prepacked_0": "MatMul+1|16;4;0"}.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["z"])], "branch", [],
                               [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 2])],
                               [outside("inner", 32)])
    nodes = [helper.make_node("MatMul", ["x", "small"], ["y"]), helper.make_node("MatMul", ["y", "large"], ["w"]),
             helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
                              [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])],
                              [outside("large", 0), helper.make_tensor("small", TensorProto.FLOAT, [1], [1.5])])
    return helper.make_model(graph, producer_name="tests")


def test_every_tensor_is_reached_and_all_else_stays() -> None:
    import onnx

    model = a_model()
    seen: dict[str, Entries] = {}

    def change(name: str, entries: Entries) -> Entries:
        seen[name] = entries
        return {**entries, "location": "w" * 200}

    found = onnx.load_from_string(rewrite(model.SerializeToString(), change))
    assert seen.keys() == {"large", "inner"}
    assert seen["inner"]["offset"] == "32"
    assert found != model
    for tensor in (found.graph.initializer[0], *(item.g.initializer[0] for item in found.graph.node[2].attribute)):
        (place,) = [item for item in tensor.external_data if item.key == "location"]
        assert place.value == "w" * 200
        place.value = "raw.data"
    assert found == model


def test_the_heaviest_node_stands_first_and_the_others_keep_their_order() -> None:
    import onnx

    model = a_model()
    moved = onnx.load_from_string(heaviest_first(model.SerializeToString(), {"large": 16}))
    assert [node.output[0] for node in moved.graph.node] == ["w", "y", "v"]
    assert onnx.load_from_string(heaviest_first(model.SerializeToString(), {})) == model


def test_broken_files_are_refused() -> None:
    whole = a_model().SerializeToString()
    graph = whole.index(b"\x3a")  # field 7, the graph, whose length no longer fits
    for size in range(graph + 3, len(whole) - 10, 7):
        with pytest.raises(EdgeftError, match="no sound ONNX file"):
            rewrite(whole[:size], lambda _, entries: entries)
    rewrite(whole, lambda _, entries: entries)
    for data, why in ((b"\xff" * 12, "does not end"), (b"\x3a\x05\x01", "ends after its message"),
                      (b"\x3b", "wire type"), (b"\x3a\x08\x2a\x06\x6a\x04\x12\x02ab", "no key")):
        with pytest.raises(EdgeftError, match=why):
            rewrite(data, lambda _, entries: entries)
