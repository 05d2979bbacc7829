"""The packed base computes what the unpacked grid does, and no floats of its weights stay behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.contract.grid import Quant
from edgeft.contract.tensors import TensorFile
from edgeft.testing.models import tiny_base, token_ids
from edgeft.train.grid import put_on_grid
from edgeft.train.packed import Packed, packed_weights, packs
from tests.conftest import edgeft, train_run

GRIDS = [Quant("int4", 16), Quant("int4", 32, False), Quant("int8", 64, False, "mse")]


def both(model_type: str, grid: Quant, tied: bool | None = None) -> tuple[Any, Any]:
    """A base on a grid, as floats and packed."""
    floats = tiny_base(model_type, tied=tied)
    packed = copy.deepcopy(floats)
    assert put_on_grid(floats, grid) == put_on_grid(packed, grid, packed=True)
    return floats, packed


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen2"])
def test_a_packed_base_equals_the_same_grid_as_floats(model_type: str, grid: Quant) -> None:
    floats, packed = both(model_type, grid)
    with torch.no_grad():
        wanted, found = floats(token_ids()).logits, packed(token_ids()).logits
        before = tiny_base(model_type)(token_ids()).logits
    assert (wanted - found).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max()))
    assert (wanted - before).abs().max() > 1e-3, "the grid itself must be felt"
    for name, module in packed.named_modules():
        if isinstance(module, Packed):
            torch.testing.assert_close(module.weight, floats.get_submodule(name).weight, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("whole", [320, 1 << 23])  # the first: ten rows of 32 at once
def test_gradients_of_a_lora_are_those_on_floats(checkpointing: bool, whole: int,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr("edgeft.train.packed.WHOLE", whole)
    losses, gradients = [], []
    for base in both("llama", GRIDS[1], tied=True):
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        if checkpointing:
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        model.train()
        loss = model(token_ids(), labels=token_ids()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if parameter.requires_grad})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(gradients[0]) > 8
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients[1].values())


def test_no_float_copy_of_a_weight_is_kept() -> None:
    """Not in the model, and not for the backward pass."""
    saved: list[tuple[int, ...]] = []
    shapes = {(48, 32), (32, 48), (96, 32)}  # feed-forward weights and the head, in none of which a batch comes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    for base, kept in zip(both("llama", Quant("int4", 32), tied=True), (True, False), strict=True):
        base.requires_grad_(False)
        base.enable_input_require_grads()
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            base(token_ids(), labels=token_ids()).loss.backward()
        turned = {shape[::-1] for shape in shapes}
        assert bool(set(saved) & (shapes | turned)) == kept
        assert any(tuple(parameter.shape) in shapes for parameter in base.parameters()) == kept


def test_a_packed_base_takes_a_fraction_of_the_memory() -> None:
    floats, packed = both("llama", Quant("int4", 32), tied=True)

    def size(model: torch.nn.Module) -> int:
        held = {one.data_ptr(): one.nbytes for one in [*model.parameters(), *model.buffers()]}
        return sum(held.values())

    assert size(packed) < 0.25 * size(floats)
    assert packed_weights(packed) == sum(one.numel() for one in floats.parameters() if one.ndim == 2)
    assert packed_weights(floats) == 0


def test_auto_packs_what_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, device = tiny_base("llama"), torch.device("cpu")
    assert not packs("auto", model, device)
    assert packs("yes", model, device)
    monkeypatch.setattr("os.sysconf", lambda name: 300)
    assert packs("auto", model, device)
    assert not packs("no", model, device)


def learned(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    file = TensorFile(run / "adapter_model.safetensors")
    return {name: np.array(file[name]) for name in file}


def test_training_on_a_packed_base_learns_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["--max-steps", 4, "--lr", 0.01, "--quant", "int4", "--block", 32, "--asymmetric"]
    runs = {packed: train_run(tmp_path / packed, base, data, *words, "--packed", packed) for packed in ("yes", "no")}
    records = {packed: json.loads((run / "edgeft.json").read_text()) for packed, run in runs.items()}
    assert records["yes"]["grid"]["packed"]
    assert not records["no"]["grid"]["packed"]
    assert records["yes"]["grid"]["fingerprint"] == records["no"]["grid"]["fingerprint"]
    assert records["yes"]["metrics"]["parameters"] == records["no"]["metrics"]["parameters"]
    found, wanted = learned(runs["yes"]), learned(runs["no"])
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], atol=2e-4)
    other = learned(train_run(tmp_path / "float", base, data, *words[:4]))
    assert any(np.abs(other[name] - wanted[name]).max() > 2e-3 for name in wanted)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "ia3"])
def test_other_methods_stand_on_a_packed_base(base: Path, data: Path, tmp_path: Path, method: str) -> None:
    run = train_run(tmp_path / "run", base, data, "--max-steps", 2, "--quant", "int4", "--packed", "yes",
                    method=method)
    assert json.loads((run / "edgeft.json").read_text())["grid"]["packed"]


def test_a_start_that_takes_from_packed_weights_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["train", "lora", "--base", base, "--data", data, "--max-steps", 1, "--quant", "int4", "--init", "pissa"]
    done = edgeft(*words, "--packed", "yes", "--out", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert "--packed no" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def any_base(request: pytest.FixtureRequest, make_base: Callable[..., Path]) -> Path:
    return make_base(request.param, seed=3)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
@pytest.mark.parametrize("given", [
    {}, {"use_rslora": True}, {"lora_alpha": 3, "r": 16}, {"use_dora": True},
    {"alpha_pattern": {"down_proj|c_proj": 5.0}, "rank_pattern": {"up_proj|c_fc": 2}}], ids=str)
def test_loftq_starts_nearer_to_the_float_weights(any_base: Path, given: dict[str, Any]) -> None:
    from edgeft.options import resolve
    from edgeft.plugins import host
    from edgeft.train.base import load_base
    from edgeft.train.grid import remember_floats

    method = host().method("lora")
    ids = torch.randint(6, 200, (3, 12), generator=torch.Generator().manual_seed(1))

    def model(init: str, grid: bool = True, **changes: Any) -> Any:
        base = load_base(str(any_base))
        if grid:
            remember_floats(base.model, base.folder)
            put_on_grid(base.model, Quant("int4", 64))
        return method.attach(base.model, resolve(method.Options, {"r": 8, **given, "init": init, **changes})).eval()

    with torch.no_grad():
        floats = model("default", grid=False)(input_ids=ids).logits
        plain, near = (model(init)(input_ids=ids).logits for init in ("default", "loftq"))
        whole = model("loftq", r=96, rank_pattern={})(input_ids=ids).logits
    distances = [float((floats - one).norm()) for one in (plain, near, whole)]
    assert distances[1] < 0.9 * distances[0]
    assert distances[2] < distances[1]  # only what has no A and B, embedding and head, is rounded then


def test_loftq_wants_a_grid(base: Path, data: Path, tmp_path: Path) -> None:
    done = edgeft("train", "lora", "--base", base, "--data", data, "--out", tmp_path / "run", "--init", "loftq",
                  check=False)
    assert done.returncode == 1
    assert "--quant" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_loftq_run_ships_the_untouched_grid(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["--max-steps", 2, "--lr", 1e-5, "--quant", "int4", "--eval-data", data]
    plain, near = (json.loads((train_run(tmp_path / init, base, data, *words, "--init", init, "--packed", "yes")
                               / "edgeft.json").read_text()) for init in ("default", "loftq"))
    assert plain["grid"]["fingerprint"] == near["grid"]["fingerprint"]
    assert near["metrics"]["eval_base"] == plain["metrics"]["eval_base"]
    assert near["metrics"]["eval"] != plain["metrics"]["eval"]
    edgeft("export", tmp_path / "loftq", "--device", "cpu-x86_64", "--out", tmp_path / "bundle", "--quant", "int4",
           "--block", 128)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_plan_counts_what_a_packed_base_holds(grid: Quant) -> None:
    from edgeft.train.memory_plan import plan

    base = tiny_base("llama", tied=True)
    small, tiny, long = (plan(base.config, grid, rank=4, tokens=tokens, checkpointing=checkpointing)
                         for tokens, checkpointing in ((16, False), (16, True), (64, True)))
    put_on_grid(base, grid, packed=True)
    held = {id(part): part.nbytes for module in base.modules() if isinstance(module, Packed)
            for part in (module.codes, module.scales, module.zero_points)}
    assert small.codes == sum(held.values())
    assert small.floats == sum(one.nbytes for one in base.parameters())
    assert small.adapter == 16 * 4 * sum(module.weight.shape[0] + module.weight.shape[1]
                                         for name, module in base.named_modules() if "_proj" in name)
    assert tiny.activations < small.activations
    assert long.logits == 4 * tiny.logits
    assert long.activations > 3 * tiny.activations
    assert small.total > sum([small.codes, small.floats, small.adapter, small.activations])
