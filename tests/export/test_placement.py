"""What a provider takes by its table: each rule refuses, the work is counted, and too little placed is no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError
from edgeft.export.placement import FOLDER, Rule, Table, check_graph, matrix_work, read_table, tables
from tests.conftest import edgeft

TABLE = Table("test", "TestExecutionProvider", "", "static", "DequantizeLinear", ("FLOAT",), 4,
              {"MatMul": Rule(), "Relu": Rule(), "Transpose": Rule()}, ("here",))


def value(name: str, *shape: int, stored: bool = False, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    made = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    if stored:
        made.const_value = ir.tensor(np.zeros(shape, np.float32), name=name)
    return made


def graph_of(nodes: list[ir.Node], *, inputs: list[ir.Value]) -> ir.Model:
    for node in nodes:
        for out in node.outputs:
            out.type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph(inputs, [nodes[-1].outputs[0]], nodes=nodes), ir_version=10)


def product(read: ir.Value, weight: ir.Value, *shape: int) -> ir.Node:
    node = ir.node("MatMul", [read, weight])
    node.outputs[0].shape = ir.Shape(shape)
    return node


def test_every_table_reads_and_says_where_it_is_from() -> None:
    found = {table.name: table for table in tables()}
    assert {"openvino-cpu", "openvino-npu", "qnn-htp", "coreml"} <= set(found)
    for table in found.values():
        assert any("https://" in source for source in table.sources), table.name
        assert {"MatMul", "Softmax", "Concat"} <= set(table.operators), table.name


def test_a_table_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    text = (FOLDER / "coreml.toml").read_text()
    (tmp_path / "t.toml").write_text(text.replace("MatMul = {}", "MatMul = { constants = [1] }"))
    with pytest.raises(EdgeftError, match="is no table of a provider"):
        read_table(tmp_path / "t.toml")


def test_work_is_multiply_adds() -> None:
    node = product(value("x", 1, 2, 6, 8), value("w", 1, 2, 8, 5), 1, 2, 6, 5)
    assert matrix_work(node) == 2 * 6 * 5 * 8
    assert matrix_work(ir.node("Relu", [value("x", 4)])) == 0


def test_shares_add_up() -> None:
    x = value("x", 1, 4, 8)
    first = product(x, value("w", 8, 2, stored=True), 1, 4, 2)
    other = ir.node("Gelu", [first.outputs[0]])
    other.outputs[0].shape = ir.Shape((1, 4, 2))
    second = product(other.outputs[0], value("v", 2, 3, stored=True), 1, 4, 3)
    report = check_graph(graph_of([first, other, second], inputs=[x]), TABLE)
    assert (report["multiply_adds"], report["nodes"], report["placed"], report["share"]) == (64 + 24, 3, 2, 1.0)
    assert report["fallback"] == [{"operator": "Gelu", "nodes": 1, "share": 0.0, "reason": "not among its operators"}]


def test_a_product_whose_weight_is_made_elsewhere_is_not_placed() -> None:
    x = value("x", 1, 4, 8)
    made = ir.node("DequantizeLinear", [value("codes", 8, 2, stored=True), value("s", 1, 2, stored=True)])
    made.outputs[0].shape = ir.Shape((8, 2))
    turned = ir.node("Transpose", [value("w", 2, 8, stored=True)])
    turned.outputs[0].shape = ir.Shape((8, 2))
    nodes = [made, turned, product(x, made.outputs[0], 1, 4, 2), product(x, turned.outputs[0], 1, 4, 2)]
    report = check_graph(graph_of(nodes, inputs=[x]), TABLE)
    assert report["share"] == 0.5
    assert report["fallback"][0]["reason"] == "its weight comes from DequantizeLinear, which falls back: not among " \
        "its operators"


@pytest.mark.parametrize(("rule", "reason"), [
    (Rule(constant=(1,)), "its input 1 is no constant"), (Rule(types=("INT32",)), "of FLOAT"),
    (Rule(rank=(4, 4)), "3 axes"), (Rule(attributes={"bits": [4]}), "bits 8"),
    (Rule(multiples={"block_size": 16}), "block_size 24 is no multiple of 16"),
    (Rule(divides={"block_size": "K"}), "block_size 24 does not divide K 64"),
    (Rule(blocked=False), "quantized in blocks"),
    (Rule(whole=True), "4 rows are no whole number of blocks of 24"), (Rule(), "")])
def test_each_rule_refuses(rule: Rule, reason: str) -> None:
    attributes: dict[str, Any] = {"bits": 8, "block_size": 24, "K": 64}
    x, w = value("x", 1, 4, 8), value("w", 8, 2)
    node = ir.node("MatMul", [x, w], attributes)
    node.outputs[0].shape = ir.Shape((1, 4, 2))
    table = Table("t", "T", "", "static", "", ("FLOAT",), 4, {"MatMul": rule}, ())
    report = check_graph(graph_of([node], inputs=[x, w]), table)
    assert [item["reason"] for item in report["fallback"]] == ([reason] if reason else [])
    assert report["share"] == (0.0 if reason else 1.0)


def test_more_axes_than_the_provider_has() -> None:
    x = value("x", 1, 1, 1, 4, 8)
    node = product(x, value("w", 8, 2, stored=True), 1, 1, 1, 4, 2)
    assert check_graph(graph_of([node], inputs=[x]), TABLE)["fallback"][0]["reason"] == "more than 4 axes"


def test_blocks_with_a_rest_are_refused_for_openvino(lora_run: Path, tmp_path: Path) -> None:
    done = edgeft("export", lora_run, "--device", "intel-npu", "--out", tmp_path / "made", check=False)
    assert done.returncode == 1
    assert "96 rows are no whole number of blocks of 64" in done.stderr
    assert not (tmp_path / "made").exists()


def test_too_little_placed_is_no_bundle(lora_run: Path, tmp_path: Path) -> None:
    done = edgeft("export", lora_run, "--device", "apple-silicon", "--quant", "int4", "--out", tmp_path / "made",
                  check=False)
    assert done.returncode == 1
    assert "share of the matrix work placed  declared at least 95%" in done.stderr
    assert "--quant fp16" in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("device", "quant"), [("apple-silicon", "fp16"), ("snapdragon-8-gen-3", "fp32")])
def test_the_report_is_in_the_bundle_and_printed(lora_run: Path, tmp_path: Path, device: str, quant: str) -> None:
    done = edgeft("export", lora_run, "--device", device, "--quant", quant, "--out", tmp_path / "made")
    placement = read_bundle(tmp_path / "made").manifest["placement"]
    assert set(placement["graphs"]) == {"model.static-prefill.onnx", "model.static-decode.onnx"}
    assert all(report["share"] >= 0.95 for report in placement["graphs"].values())
    assert f"{placement['provider']} takes" in done.stdout
