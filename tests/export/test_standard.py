"""Graphs in standard operators, dynamic and of fixed shapes: what is in them, and that they answer like the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeft.contract.bundle import GRAPH, SLOTS_GRAPH, STATIC_DECODE, STATIC_PREFILL, read_bundle
from edgeft.contract.device import read_device
from edgeft.contract.errors import EdgeftError
from edgeft.contract.grid import quantize, unpack
from edgeft.contract.tensors import Weights
from edgeft.export.dequantize import codes_by_input
from edgeft.export.lower import not_standard
from edgeft.export.lower_attention import MASKED
from edgeft.run import load
from tests.conftest import edgeft, train_run
from tests.run.conftest import broken, random_lora

CPU = "CPUExecutionProvider"
CHUNK, RANK = 16, 8
PROMPTS = ["one", "the red cat runs a tree and the blue house sees two small dogs in a tree",
           "the red cat likes the bird " * 8]


@pytest.fixture(scope="session")
def fixed_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This processor, as if it took fixed shapes only."""
    ours = read_device(Path(__file__).parents[2] / "devices" / "cpu-x86_64.toml")
    path = tmp_path_factory.mktemp("devices") / "fixed.toml"
    path.write_text(f"""summary = "{ours.summary}"
verified = "ran"
[limits]
memory_mib = 4096
budget_mib = 2048
bandwidth_gb_s = 30.0
[cpu]
arch = "x86_64"
isa = ["avx2"]
threads = 1
[graph]
quant = "int4"
block = 32
context = 200
shapes = "static"
chunk = {CHUNK}
rank = {RANK}
slots = ["lowrank", "scale", "prefix"]
""")
    return path


def export_for(device: object, out: Path, source: Path, *options: object) -> Path:
    """Export in this process."""
    from edgeft.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["export", str(source), "--device", str(device), "--out", str(out), *map(str, options)])
    assert ended.value.code == 0
    return out


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory, lora_run: Path) -> Path:
    """For OpenVINO's processor plugin, fp32."""
    return export_for("intel-cpu-openvino", tmp_path_factory.mktemp("standard") / "fp32", lora_run, "--quant", "fp32")


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory, lora_run: Path, fixed_device: Path) -> Path:
    """Of fixed shapes, fp32."""
    return export_for(fixed_device, tmp_path_factory.mktemp("fixed") / "fp32", lora_run, "--quant", "fp32")


@pytest.fixture(scope="session")
def fixed_int4(tmp_path_factory: pytest.TempPathFactory, lora_run: Path, fixed_device: Path) -> Path:
    """Of fixed shapes, int4."""
    return export_for(fixed_device, tmp_path_factory.mktemp("fixed") / "int4", lora_run)


def graphs(bundle: Path) -> dict[str, ir.Model]:
    return {path.name: ir.load(path) for path in bundle.glob("*.onnx")}


def test_only_standard_operators_of_opset_21(standard: Path, fixed: Path, fixed_int4: Path, bundle: Path) -> None:
    for folder in (standard, fixed, fixed_int4):
        for name, model in graphs(folder).items():
            assert not_standard(model.graph) == [], name
            assert dict(model.opset_imports) == {"": 21}, name
    assert "GroupQueryAttention" in not_standard(ir.load(bundle / GRAPH).graph)


def test_masks_are_finite_also_in_float16(fixed: Path, standard: Path) -> None:
    for folder in (standard, fixed):
        for model in graphs(folder).values():
            smallest = min(value.const_value.numpy().min() for value in model.graph.initializers.values()
                           if value.dtype == ir.DataType.FLOAT and value.const_value.size)
            assert smallest == MASKED > np.finfo(np.float16).min


def test_every_shape_is_fixed_and_only_new_rows_come_out(fixed: Path) -> None:
    opened = read_bundle(fixed)
    assert opened.manifest["graph"]["static"] == {"prefill": STATIC_PREFILL, "decode": STATIC_DECODE, "chunk": CHUNK,
                                                  "cache": 200, "rank": RANK, "present": "new rows"}
    heads, size = opened.prefix_layers[0]
    for file, seq in ((STATIC_PREFILL, CHUNK), (STATIC_DECODE, 1)):
        graph = ir.load(fixed / file).graph
        shapes = {value.name: value.shape for value in (*graph.inputs, *graph.outputs)}
        assert all(shape.is_static() for shape in shapes.values())
        assert not any(value.is_initializer() for value in graph.inputs)
        assert shapes["input_ids"] == [1, seq]
        assert shapes["attention_mask"] == [1, 200 + seq]
        assert shapes["past_key_values.0.key"] == [1, heads, 200, size]
        assert shapes["present.0.key"] == [1, heads, seq, size]
        assert tuple(shapes["logits"])[:2] == (1, 1)
        assert shapes["adapter_gate"] == [1, 1, RANK]
        assert not {node.op_type for node in graph} & {"Shape", "Range", "LessOrEqual", "ConstantOfShape", "Expand"}
    assert not all(value.shape.is_static() for value in ir.load(fixed / GRAPH).graph.inputs)


@pytest.mark.parametrize("used", [{}, {"colors": 1.0}, {"colors": 0.5}])
def test_answers_equal_the_ordinary_bundles(bundle: Path, standard: Path, fixed: Path, used: dict[str, float]) -> None:
    wanted = [answer.tokens for answer in load(bundle).batch(PROMPTS, adapters=[used] * 3, max_tokens=24)]
    for folder in (standard, fixed):
        model = load(folder, provider=CPU)
        found = [answer.tokens for answer in model.batch(PROMPTS, adapters=[used] * 3, max_tokens=24)]
        assert found == wanted
    other = [answer.tokens for answer in load(fixed, provider=CPU).batch(PROMPTS, adapters=[{"colors": 0.1}] * 3,
                                                                         max_tokens=24)]
    assert used.get("colors") != 1.0 or other != wanted


@pytest.mark.parametrize("count", [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_a_prompt_of_any_length_goes_in_by_padded_chunks(bundle: Path, fixed: Path, count: int) -> None:
    ids = np.random.default_rng(count).integers(3, 300, count).tolist()
    ours, theirs = load(fixed).lanes([{"colors": 1.0}], count + 4), load(bundle).lanes([{"colors": 1.0}], count + 4)
    wanted = np.array(theirs.feed(0, ids, keep=0))
    assert np.abs(ours.feed(0, ids) - wanted[-1:]).max() < 1e-4
    assert np.abs(ours.step([7]) - theirs.step([7])).max() < 1e-4
    again = load(fixed).lanes([{"colors": 1.0}], count + 4)
    assert np.abs(again.feed(0, ids, keep=0) - wanted).max() < 1e-4
    third = load(fixed).lanes([{"colors": 1.0}], count + 4)
    assert np.abs(third.feed(0, ids, keep=2) - wanted[-2:]).max() < 1e-4
    assert np.abs(third.feed(0, [7]) - wanted[-1:]).max() > 1e-3  # the cache is read


def test_rows_are_apart(fixed: Path) -> None:
    model = load(fixed)
    alone = [model.generate(prompt, adapters=used, max_tokens=16).tokens
             for prompt, used in zip(PROMPTS, ({}, {"colors": 1.0}, {}), strict=True)]
    mixed = model.batch(PROMPTS, adapters=[{}, {"colors": 1.0}, {}], max_tokens=16)
    assert [answer.tokens for answer in mixed] == alone


def test_more_rank_than_the_slots_have_is_refused(fixed: Path, tmp_path: Path) -> None:
    model = load(fixed)
    model.load_adapter("wide", random_lora(fixed, tmp_path / "wide.safetensors", 1, rank=RANK + 1))
    model.load_adapter("narrow", random_lora(fixed, tmp_path / "narrow.safetensors", 1, rank=2))
    with pytest.raises(Exception, match=rf"rank  declared {RANK}  found {RANK + 1} \(wide\)"):
        model.generate("one", adapters={"wide": 1.0}, max_tokens=2)
    with pytest.raises(Exception, match="Use fewer adapters at once"):
        model.generate("one", adapters={"colors": 1.0, "narrow": 1.0}, max_tokens=2, raw=True)
    assert model.generate("one", adapters={"narrow": 1.0}, max_tokens=2).tokens


def test_add_refuses_a_rank_that_the_slots_lack(fixed: Path, base: Path, data: Path, tmp_path: Path) -> None:
    wide = train_run(tmp_path / "wide", base, data, "--rank", 2 * RANK, "--max-steps", 2)
    done = edgeft("add", fixed, wide, "--name", "wide", check=False)
    assert done.returncode == 1
    assert f"declared {RANK}  found {2 * RANK}" in done.stderr
    assert "wide" not in read_bundle(fixed).adapters


def test_a_soft_prompt_fills_the_fixed_cache(fixed: Path, bundle: Path, base: Path, data: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "soft", base, data, "--max-steps", 4, method="prompt_tuning")
    for folder in (fixed, bundle):
        edgeft("add", folder, run, "--name", "soft")
    try:
        ours, theirs = load(fixed), load(bundle)
        for prompt in PROMPTS:
            found = ours.generate(prompt, adapters={"soft": 1.0}, max_tokens=16).tokens
            assert found == theirs.generate(prompt, adapters={"soft": 1.0}, max_tokens=16).tokens
    finally:
        for folder in (fixed, bundle):
            edgeft("remove", folder, "soft")


def test_integer_codes_are_the_quantizers(fixed_int4: Path, base: Path) -> None:
    graph = ir.load(fixed_int4 / GRAPH).graph
    stored = graph.initializers["model.layers.0.mlp.down_proj.codes"]
    assert stored.dtype == ir.DataType.INT4
    grid = quantize(Weights(base)["model.layers.0.mlp.down_proj.weight"], 4, 32)
    codes = unpack(grid.codes, 4).reshape(len(grid.codes), -1)[:, : grid.in_features]
    found = stored.const_value.numpy().astype(np.int8)
    assert (found == codes.T.astype(np.int8) - 8).all()
    assert stored.const_value.tobytes() == codes_by_input(grid, True).tobytes()
    assert (found != codes.T.astype(np.int8) - 7).any()
    scales = graph.initializers["model.layers.0.mlp.down_proj.scales"].const_value.numpy()
    assert (scales == grid.scales.T).all()


@pytest.mark.parametrize(("quant", "block", "symmetric"), [
    ("int4", 128, True), ("int4", 32, False), ("int8", 64, True)])
def test_other_grids(lora_run: Path, fixed_device: Path, tmp_path: Path, quant: str, block: int,
                     symmetric: bool) -> None:
    """Blocks that do not divide the rows, zero points and 8 bits: export itself compares with torch on that grid."""
    text = fixed_device.read_text().replace("block = 32", f"block = {block}\nsymmetric = {str(symmetric).lower()}")
    (tmp_path / "grid.toml").write_text(text)
    made = export_for(tmp_path / "grid.toml", tmp_path / "made", lora_run, "--quant", quant)
    report = read_bundle(made).manifest["parity"]["base"]
    assert report["largest_logit_difference"] < 1e-3
    assert report["greedy_equal"] == report["prompts"]
    assert "exact_activations" not in report  # as it ships it is exact


ARCHITECTURES = {"qwen2": {}, "qwen3": {"head_dim": 16}, "mistral": {"sliding_window": 8}, "phi3": {"pad_token_id": 0},
                 "gemma2": {"head_dim": 16, "sliding_window": 8}, "gpt2": {}, "granite": {}}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_architectures(make_base: Callable[..., Path], fixed_device: Path, tmp_path: Path, model_type: str) -> None:
    """Built or traced, with windows, biases and norms of their own: export compares with torch."""
    base = make_base(model_type, **ARCHITECTURES[model_type])
    made = export_for(fixed_device, tmp_path / "made", base, "--quant", "fp32")
    for name, model in graphs(made).items():
        assert not_standard(model.graph) == [], name
    assert read_bundle(made).manifest["parity"]["base"]["largest_logit_difference"] < 1e-3


def test_a_graph_whose_optional_inputs_are_required(standard: Path) -> None:
    graph = ir.load(standard / SLOTS_GRAPH).graph
    assert not any(value.is_initializer() for value in graph.inputs)
    assert {value.name for value in graph.inputs} == {value.name for value in ir.load(standard / GRAPH).graph.inputs}


@pytest.mark.parametrize("graphs_of", ["standard", "fixed"])
def test_numbers_that_are_none_name_their_layer(request: pytest.FixtureRequest, graphs_of: str,
                                                tmp_path: Path) -> None:
    bundle: Path = request.getfixturevalue(graphs_of)
    model = load(bundle, provider=CPU)
    model.load_adapter("broken", broken(bundle, tmp_path / "broken.safetensors", "layers.0.mlp.down_proj"))
    with pytest.raises(EdgeftError, match=r"not a number .* with adapter 'broken': it began in the keys and values of "
                                          r"model\.layers\.1 \(finite up to those of model\.layers\.0\)"):
        model.generate(PROMPTS[1], adapters={"broken": 1.0}, raw=True, max_tokens=4)
    assert model.generate(PROMPTS[1], adapters={}, raw=True, max_tokens=4).tokens


def test_classifiers_are_refused(make_base: Callable[..., Path], fixed_device: Path, tmp_path: Path) -> None:
    folder = make_base("llama", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
    done = edgeft("export", folder, "--device", fixed_device, "--out", tmp_path / "made", check=False)
    assert done.returncode == 2
    assert "made of decoders that generate text" in done.stderr
    assert not (tmp_path / "made").exists()
