"""What training computed with is what the bundle holds: codes, scales and zero points, bit for bit."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.grid import Grid, Quant, digest
from edgeft.contract.tensors import TensorFile, write_tensors
from tests.conftest import edgeft, export_bundle, train_run

GRIDS = [Quant(kind, block, symmetric, rounding) for kind, block, symmetric, rounding in [
    ("int4", 32, True, "rtn"), ("int4", 64, True, "rtn"), ("int4", 128, True, "rtn"),
    ("int4", 32, False, "rtn"), ("int4", 64, False, "mse"), ("int4", 128, False, "rtn"),
    ("int8", 32, False, "rtn"), ("int8", 64, True, "rtn"), ("int8", 128, False, "rtn"), ("int4", 128, True, "mse")]]
STEPS = ("--max-steps", 3, "--lr", 0.02)


def words(quant: Quant) -> list[object]:
    """A grid as options of train and export."""
    return ["--quant", quant.kind, "--block", quant.block, *([] if quant.symmetric else ["--asymmetric"]),
            "--rounding", quant.rounding]


def stored(bundle: Path, quant: Quant) -> dict[str, tuple[Grid, list[int]]]:
    """What each MatMulNBits of the graph reads, by the product's name, and where its modules' rows end."""
    groups = {group.name: group for group in read_bundle(bundle).linears}
    found = {}
    for node in ir.load(bundle / "model.onnx").graph:
        if node.op_type != "MatMulNBits":
            continue
        read = [np.array(value.const_value.numpy()) for value in node.inputs[1:]]
        assert len(read) == (2 if quant.symmetric else 3)
        assert node.attributes["block_size"].as_int() == quant.block
        assert node.attributes["bits"].as_int() == quant.bits
        name = str(node.inputs[1].name).removesuffix(".codes")
        grid = Grid(read[0], read[1], quant.bits, quant.block, node.attributes["K"].as_int(), *read[2:])
        found[name] = (grid, list(np.cumsum([0, *groups[name].out_features])))
    return found


def by_tensor(bundle: Path, quant: Quant) -> dict[str, Grid]:
    """The same, taken apart into the base's tensors."""
    groups = {group.name: group for group in read_bundle(bundle).linears}
    parts = {}
    for name, (grid, ends) in stored(bundle, quant).items():
        for index, module in enumerate(groups[name].modules):
            parts[f"{module}.weight"] = grid.rows(ends[index], ends[index + 1])
    return parts


def same(left: Grid, right: Grid) -> bool:
    if left.codes.shape != right.codes.shape or not np.array_equal(left.codes, right.codes):
        return False
    return np.array_equal(left.scales.view(np.uint32), right.scales.view(np.uint32)) and \
        np.array_equal(left.zero_points, right.zero_points)


@pytest.fixture(scope="module", params=GRIDS, ids=str)
def shipped(request: pytest.FixtureRequest, base: Path, data: Path,
            tmp_path_factory: pytest.TempPathFactory) -> tuple[Quant, Path, Path]:
    """A LoRA trained on a grid, and its bundle."""
    quant, folder = request.param, tmp_path_factory.mktemp("grid")
    run = train_run(folder / "run", base, data, *STEPS, *words(quant))
    return quant, run, export_bundle(folder / "bundle", run, "--name", "tuned", *words(quant))


def test_the_graph_holds_the_training_bases_codes_bit_for_bit(shipped: tuple[Quant, Path, Path], base: Path) -> None:
    quant, run, bundle = shipped
    recorded = json.loads((run / "edgeft.json").read_text())["grid"]
    weights = TensorFile(base / "model.safetensors")
    parts = by_tensor(bundle, quant)
    head = parts.pop("lm_head.weight")
    parts["model.embed_tokens.weight"] = head
    assert parts.keys() == recorded["tensors"].keys()
    assert json.loads((bundle / "bundle.json").read_text())["quant"]["fingerprint"] == recorded["fingerprint"]
    for name, grid in parts.items():
        assert digest([grid]) == recorded["tensors"][name]
        assert same(grid, quant.quantize(weights[name])), name
    other = quant.but(block=16)
    assert not same(head, other.quantize(weights["model.embed_tokens.weight"]))
    changed = np.array(weights["model.embed_tokens.weight"])
    changed[3, 5] += 0.5
    assert not same(head, quant.quantize(changed))
    assert digest([quant.quantize(changed)]) != recorded["tensors"]["model.embed_tokens.weight"]


def test_torch_on_that_base_and_the_bundle_agree(shipped: tuple[Quant, Path, Path]) -> None:
    """With exact activations, of every grid; int8 rounding of activations apart."""
    quant, _, bundle = shipped
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert Quant.from_json(manifest["quant"]) == quant
    for report in (manifest["parity"]["base"], manifest["parity"]["adapters"]["tuned"]):
        assert report["exact_activations"]["largest_logit_difference"] < 1e-3
        assert report["exact_activations"]["greedy_equal"] == report["prompts"]
        assert report["against_float"]["largest_logit_difference"] > 1e-3


def test_torch_evaluates_a_run_on_its_own_grid(shipped: tuple[Quant, Path, Path], data: Path) -> None:
    from edgeft.plugins import host
    from edgeft.run.evaluate import evaluate
    from edgeft.train.evaluate import evaluate_run

    _, run, bundle = shipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = evaluate_run(run, data, None, None, host())["loss"]
    assert found == pytest.approx(evaluate(bundle, data, None, None)["loss"], abs=0.02)  # it rounds activations too


def test_the_device_prepares_an_asymmetric_grid(base: Path, tmp_path: Path) -> None:
    from edgeft.run import load

    bundle = export_bundle(tmp_path / "bundle", base, "--asymmetric", "--block", 32)
    edgeft("install", bundle, "--to", tmp_path / "device")
    prompt = "the red cat runs a tree"
    assert load(str(tmp_path / "device")).generate(prompt, max_tokens=12).tokens == \
        load(str(bundle)).generate(prompt, max_tokens=12).tokens


@pytest.fixture(scope="module")
def own_base(make_base: Callable[..., Path]) -> Path:
    """A base that a test may change."""
    return make_base(seed=11)


@pytest.fixture(scope="module")
def grid_run(own_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("run") / "run", own_base, data, *STEPS, "--quant", "int4", "--block", 64)


def refused(out: Path, source: Path, *options: object) -> str:
    done = edgeft("export", source, "--device", "cpu-x86_64", "--out", out, *options, check=False)
    assert done.returncode == 1
    assert not out.exists()
    return done.stderr


def test_another_grid_is_refused_unless_it_is_named(grid_run: Path, tmp_path: Path) -> None:
    refused(tmp_path / "b", grid_run, "--quant", "int4")
    said = refused(tmp_path / "b", grid_run)
    assert "declared int4, block 64, symmetric, rounding rtn  found int4, block 128" in said
    assert "--quant int4 --block 64" in said
    done = edgeft("export", grid_run, "--device", "cpu-x86_64", "--out", tmp_path / "b", "--block", 128)
    assert "it will answer otherwise than in training" in done.stderr
    done = edgeft("export", grid_run, "--device", "cpu-x86_64", "--out", tmp_path / "c", "--block", 64)
    assert "otherwise" not in done.stderr


def test_codes_that_differ_from_trainings_are_refused(grid_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(grid_run, tmp_path / "run")
    record = json.loads((run / "edgeft.json").read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    record["grid"]["tensors"][name] = "0" * 32
    (run / "edgeft.json").write_text(json.dumps(record))
    said = refused(tmp_path / "b", run, "--block", 64)
    assert f"{name}  declared 000000000000  found" in said


def test_a_base_that_was_changed_on_disk_is_refused(own_base: Path, grid_run: Path, tmp_path: Path) -> None:
    file = own_base / "model.safetensors"
    before, tensors = file.read_bytes(), TensorFile(file)
    changed: dict[str, Any] = {name: np.array(tensors[name]) for name in tensors}
    changed["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    write_tensors(file, changed, {"format": "pt"})
    try:
        said = refused(tmp_path / "b", grid_run, "--block", 64)
    finally:
        file.write_bytes(before)
    assert "was changed on disk since" in said
    assert "base fingerprint  declared" in said


@pytest.mark.parametrize(("options", "said"), [
    (["--block", 64], "neither --quant nor --device"),
    (["--asymmetric"], "--asymmetric: describes a grid"),
    (["--device", "cpu-x86_64", "--block", 64], "block  declared 64  found 128 in the device file"),
    (["--device", "cpu-x86_64", "--quant", "int8"], "quant  declared int8  found int4"),
    (["--device", "cpu-x86_64", "--asymmetric"], "symmetric  declared False  found True")])
def test_grids_that_do_not_agree_are_refused(base: Path, data: Path, tmp_path: Path, options: list[object],
                                             said: str) -> None:
    done = edgeft("train", "lora", "--base", base, "--data", data, "--out", tmp_path / "run", *options, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_full_tuning_cannot_keep_a_grid(base: Path, data: Path, tmp_path: Path) -> None:
    done = edgeft("train", "full", "--base", base, "--data", data, "--out", tmp_path / "run", "--quant", "int4",
                  check=False)
    assert done.returncode == 2
    assert "changes the base's own weights" in done.stderr
    assert not (tmp_path / "run").exists()
