"""A base graph that others made: its weights found by their numbers, or refused by name."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import read_json
from edgeft.contract.tensors import Weights, write_tensors
from edgeft.export.given import given_graph, read_graph
from edgeft.export.linears import find_groups
from edgeft.export.match import TOLERANCES, Failed, Match, Matcher
from edgeft.export.weights import Source
from tests.conftest import edgeft, export_bundle
from tests.export.strange_graphs import STYLES, Llama

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def config(base):
    return SimpleNamespace(**{"head_dim": None, **read_json(base / "config.json")})


def open_given(path, base):
    return given_graph(path, config(base), Source(Weights(base), TIED))


def modules(graph):
    return [module for group in find_groups(graph) for module in group.slot.modules]


def expected(base):
    names = [name.removesuffix(".weight") for name in Weights(base) if name.endswith("proj.weight")]
    return sorted([*names, "lm_head"])


@pytest.mark.parametrize("style", STYLES)
def test_every_form_of_a_linear_layer_is_found_by_its_numbers(style, base, tmp_path):
    graph = open_given(Llama(base, style).save(tmp_path / "m.onnx"), base)
    assert sorted(modules(graph)) == expected(base)
    assert set(graph.origins) == set(Weights(base))
    assert (graph.builder, graph.cache) == ("given", "shared")
    assert {value.dtype for value in graph.model.graph.inputs} == {ir.DataType.INT64, ir.DataType.FLOAT}


def test_a_packed_projection_is_three_modules(base, tmp_path):
    graph = open_given(Llama(base, packed=True).save(tmp_path / "m.onnx"), base)
    assert sorted(modules(graph)) == expected(base)
    slot = find_groups(graph)[0].slot
    assert slot.name == "model.layers.0.self_attn.q_proj-k_proj-v_proj"


@pytest.mark.parametrize("style", ["float", "float16", "int4"])
def test_a_weight_that_was_changed_is_refused_by_name(style, base, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"

    def change(weight):
        return weight + 0.5 * np.roll(weight, 1) if style == "int4" else weight + (np.arange(weight.size).reshape(
            weight.shape) == 1234) * 0.01

    path = Llama(base, style, change={name: change}).save(tmp_path / "m.onnx")
    message = rf"m.onnx: is not a graph of this base\n  .*nearest {name}, off by"
    with pytest.raises(EdgeftError, match=message) as refused:
        open_given(path, base)
    assert str(refused.value).count("\n") == 2  # that one alone, and what to do


def test_a_change_in_a_packed_projection_is_told_with_its_row(base, tmp_path):
    name = "model.layers.0.self_attn.k_proj.weight"
    path = Llama(base, change={name: lambda weight: weight * 1.001}, packed=True).save(tmp_path / "m.onnx")
    with pytest.raises(EdgeftError, match=f"from row 64 on, nearest {name}, off by 1.0e-03"):
        open_given(path, base)


def test_a_graph_of_another_model_is_refused(base, make_base, tmp_path):
    path = Llama(make_base(seed=7)).save(tmp_path / "m.onnx")
    with pytest.raises(EdgeftError, match="not a graph of this base") as refused:
        open_given(path, base)
    assert "... and" in str(refused.value)


def test_a_tensor_that_the_graph_lacks_is_named(base, tmp_path):
    path = Llama(base, change={"model.norm.weight": lambda weight: weight * 2}).save(tmp_path / "m.onnx")
    with pytest.raises(EdgeftError, match=r"model.norm.weight \[64\]: is nowhere in the graph"):
        open_given(path, base)


def test_a_lora_beside_a_graph_with_a_shared_cache_equals_torch(lora_run, base, tmp_path):
    path = Llama(base, "int4", packed=True).save(tmp_path / "m.onnx")
    bundle = export_bundle(tmp_path / "b", lora_run, "--graph", path, "--quant", "fp32")
    check_parity(bundle, "shared")


def test_a_lora_beside_a_graph_with_positions_and_a_growing_cache_equals_torch(make_base, data, tmp_path):
    from tests.conftest import train_run

    base = make_base(num_key_value_heads=4)
    run = train_run(tmp_path / "run", base, data, "--max-steps", 8, "--lr", 0.03)
    path = Llama(base, "gemm", cache="growing").save(tmp_path / "m.onnx")
    bundle = export_bundle(tmp_path / "b", run, "--graph", path, "--quant", "fp32")
    check_parity(bundle, "growing")


def check_parity(bundle, cache):
    from edgeft.run import load

    manifest = read_json(bundle / "bundle.json")
    assert (manifest["graph"]["builder"], manifest["graph"]["cache"]) == ("given", cache)
    (report,) = manifest["parity"]["adapters"].values()
    assert report["largest_logit_difference"] <= 1e-3
    assert report["greedy_equal"] == report["prompts"]
    assert report["effect"] > 0.01
    model = load(bundle)
    rows = model.batch(["the red cat", "the red cat"], adapters=[None, {}], max_tokens=8, temperature=0)
    alone = [model.generate("the red cat", adapters=used, max_tokens=8, temperature=0) for used in (None, {})]
    assert [row.tokens for row in rows] == [one.tokens for one in alone]


def test_a_base_alone_on_the_device_s_grid(base, tmp_path):
    path = Llama(base, "float16").save(tmp_path / "m.onnx")
    done = edgeft("export", "--graph", path, "--base", base, "--device", "cpu-x86_64", "--out", tmp_path / "b")
    assert "int4" in done.stdout
    manifest = read_json(tmp_path / "b" / "bundle.json")
    assert manifest["parity"]["base"]["agreement"] > 0.9
    assert not manifest["adapters"]


@pytest.mark.parametrize(("words", "message"), [
    ([], "What is exported"), (["--graph", "m.onnx"], "name the base that it was exported from with --base"),
    (["--graph", "m.onnx", "--base", "starter"], "--graph m.onnx: there is no such file")])
def test_words_that_are_off(words, message, tmp_path):
    done = edgeft("export", *words, "--device", "cpu-x86_64", "--out", tmp_path / "b", check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "b").exists()


def test_inputs_without_a_place_are_named(base, tmp_path):
    llama = Llama(base)
    llama.given("token_type_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    with pytest.raises(EdgeftError, match="input token_type_ids"):
        open_given(llama.save(tmp_path / "m.onnx"), base)


def test_what_is_no_graph_or_reaches_outside_is_refused(base, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\xff not a graph")
    with pytest.raises(EdgeftError, match="is no ONNX model"):
        read_graph(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no such file"):
        read_graph(tmp_path / "other.onnx")
    (tmp_path / "in").mkdir()
    path = Llama(base).save(tmp_path / "in" / "m.onnx")
    model = ir.load(path)
    name = next(name for name, value in model.graph.initializers.items() if value.const_value.nbytes > 4096)
    tensor = model.graph.initializers[name].const_value
    (tmp_path / "secret").write_bytes(tensor.tobytes())
    model.graph.initializers[name].const_value = ir.ExternalTensor(
        "../secret", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=tmp_path / "in")
    ir.save(model, path)
    with pytest.raises(EdgeftError, match="outside the graph's folder"):
        read_graph(path)


def test_a_graph_that_lacks_what_an_operator_needs_is_refused(base, tmp_path):
    model = ir.load(Llama(base, "int4").save(tmp_path / "m.onnx"))
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    del node.attributes["K"]
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(EdgeftError, match=r"m\.onnx: is not as ONNX asks"):
        open_given(tmp_path / "m.onnx", base)


def test_a_merged_decoder_is_refused(base, tmp_path):
    model = ir.load(Llama(base).save(tmp_path / "m.onnx"))
    then, otherwise = (ir.Graph([], [], nodes=[], name=name) for name in ("then", "else"))
    model.graph.append(ir.node("If", [model.graph.inputs[0]], {"then_branch": then, "else_branch": otherwise}))
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(EdgeftError, match="graphs within the graph"):
        read_graph(tmp_path / "m.onnx")


def test_operators_of_strangers_are_refused(base, tmp_path):
    path = Llama(base).save(tmp_path / "m.onnx")
    model = ir.load(path)
    model.graph[0].domain = "com.stranger"
    model.graph.opset_imports["com.stranger"] = 1
    ir.save(model, path)
    with pytest.raises(EdgeftError, match=r"operators of 'com\.stranger'"):
        read_graph(path)


def test_a_one_that_was_added_to_a_norm_is_kept_beside_the_base_s_tensor(base, tmp_path):
    path = Llama(base, change={"model.norm.weight": lambda weight: weight + 1}).save(tmp_path / "m.onnx")
    graph = open_given(path, base)
    (use,) = graph.model.graph.initializers["model.norm.weight"].uses()
    assert use.node.op_type == "Add"
    assert use.node.inputs[1].const_value.numpy() == 1


def test_tensors_of_equal_numbers_may_be_held_once(base, tmp_path):
    one, other = (f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1))
    twins = tmp_path / "twins"
    shutil.copytree(base, twins)
    stored = Weights(base)
    write_tensors(twins / "model.safetensors", {name: np.array(stored[one if name == other else name])
                                                for name in stored}, {"format": "pt"})
    llama = Llama(twins)
    model = ir.load(llama.save(tmp_path / "m.onnx"))
    equal = [value for value in model.graph.initializers.values()
             if np.array_equal(value.const_value.numpy(), llama.weights[one])]
    assert len(equal) == 2
    ir.convenience.replace_all_uses_with(equal[1], equal[0])
    del model.graph.initializers[equal[1].name]
    ir.save(model, tmp_path / "m.onnx")
    assert {one, other} & set(open_given(tmp_path / "m.onnx", twins).origins)


def test_how_many_logits_are_kept_is_no_input_of_theirs(base, tmp_path):
    llama = Llama(base)
    llama.given("num_logits_to_keep", ir.DataType.INT64, [])
    graph = open_given(llama.save(tmp_path / "m.onnx"), base)
    assert len(graph.model.graph.inputs) == 2 + 2 * 2


def test_matching_knows_slices_and_twins():
    rng = np.random.default_rng(0)
    tensors = {"qkv": rng.normal(size=(12, 8)).astype(np.float32), "a": rng.normal(size=(4, 8)).astype(np.float32)}
    tensors["b"] = tensors["a"].copy()
    matcher = Matcher(tensors, {name: array.shape for name, array in tensors.items()})
    cut = matcher.match(tensors["qkv"][4:8].T, TOLERANCES["float"])
    assert isinstance(cut, Match)
    assert (cut.parts[0].name, cut.parts[0].start, cut.turned) == ("qkv", 4, True)
    first, second = (matcher.match(tensors["a"], TOLERANCES["float"]) for _ in range(2))
    assert {first.parts[0].name, second.parts[0].name} == {"a", "b"}
    other = matcher.match(tensors["a"] + 1, TOLERANCES["float"])
    assert isinstance(other, Failed)
    assert matcher.nearest(other)[0] in ("a", "b")
    assert matcher.nearest(matcher.match(np.ones((3, 5)), TOLERANCES["float"]))[0] == ""
