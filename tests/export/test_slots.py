"""Adapters of every kind beside one base: soft prompts, factors and low ranks, alone and mixed in one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import SCALED_GRAPH
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Model, load
from tests.conftest import edgeft, export_bundle, train_run

SOFT = ("prompt_tuning", "p_tuning", "prefix_tuning")
OPTIONS = ("--max-steps", 6, "--batch-size", 8)
ROWS = [({"colors": 0.7}, "the red cat runs a tree"), ({"colors": 1.0, "second": 0.5}, "the blue house"),
        ({"prompt_tuning": 1.0}, "one two three four five"), ({"ia3": 1.0}, "a small dog"), ({}, "the")]


def run_of(method: str, base: Path, data: Path, folder: Path) -> Path:
    short = ("--num-virtual-tokens", 5) if method in SOFT else ()
    return train_run(folder / method, base, data, *OPTIONS, "--lr", 0.05, *short, method=method)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> dict[str, Path]:
    """One run of each method."""
    folder = tmp_path_factory.mktemp("kinds")
    second = train_run(folder / "second", base, data, *OPTIONS, "--lr", 0.02, "--r", 3)
    return {"second": second, **{method: run_of(method, base, data, folder) for method in (*SOFT, "ia3")}}


@pytest.fixture(scope="module")
def mixed(bundle: Path, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a LoRA with one adapter of every other kind added."""
    copy = tmp_path_factory.mktemp("mixed") / "bundle"
    shutil.copytree(bundle, copy)
    for name, run in runs.items():
        report = json.loads(edgeft("add", copy, run, "--name", name, "--json").stdout)
        assert report["largest_logit_difference"] < 1e-3
        assert report["greedy_equal"] == report["prompts"]
        assert report["effect"] > 1e-3
    return copy


def last_logits(model: Model, rows: list[dict[str, float]], prompts: list[list[int]]) -> np.ndarray[Any, Any]:
    """Logits after the prompt and after three more tokens [rows, 2, vocab], by prefill and by decode."""
    lanes = model.lanes(rows, max(map(len, prompts)) + 8)
    first = lanes.prefill(prompts)
    for token in (20, 30, 40):
        step = np.array(lanes.step([token] * len(rows)))
    lanes.close()
    return np.stack([first, step], axis=1)


def check_mixture(model: Model, rows: list[tuple[dict[str, float], str]]) -> None:
    """Each row of the mixed batch equals the row alone, and no two kinds answer alike."""
    ids = [model.encode(prompt + "\n", {}, raw=True) for _, prompt in rows]
    whole = last_logits(model, [used for used, _ in rows], ids)
    graphs = model.graphs.opened
    for row, (used, _) in enumerate(rows):
        alone = last_logits(model, [used], [ids[row]])
        assert np.abs(whole[row] - alone[0]).max() < 1e-4
        if used:
            assert np.abs(alone - last_logits(model, [{}], [ids[row]])).max() > 1e-2
    assert model.graphs.opened == graphs  # adapters came and went, the session stayed


def test_five_kinds_in_one_batch_equal_each_row_alone(mixed: Path) -> None:
    model = load(str(mixed))
    check_mixture(model, ROWS)
    answers = model.batch([prompt for _, prompt in ROWS], adapters=[used for used, _ in ROWS], max_tokens=12, raw=True)
    for answer, (used, prompt) in zip(answers, ROWS, strict=True):
        assert answer.tokens == model.generate(prompt, adapters=used, max_tokens=12, raw=True).tokens


def test_a_bundle_opens_the_scaled_graph_only_when_it_must(mixed: Path) -> None:
    model = load(str(mixed))
    plain = last_logits(model, [{"colors": 1.0}], [[1, 20, 30]])
    assert SCALED_GRAPH not in model.graphs.opened
    changed = last_logits(model, [{"colors": 1.0, "ia3": 1.0}], [[1, 20, 30]])
    assert SCALED_GRAPH in model.graphs.opened
    assert np.abs(changed - plain).max() > 1e-2
    assert np.abs(last_logits(model, [{"colors": 1.0}], [[1, 20, 30]]) - plain).max() < 1e-4
    assert np.abs(last_logits(model, [{"colors": 1.0, "ia3": 0.0}], [[1, 20, 30]]) - plain).max() < 1e-4


@pytest.mark.parametrize("method", [*SOFT, "ia3"])
def test_int4_bundles_of_every_kind_equal_torch_on_their_own_weights(runs: dict[str, Path], tmp_path: Path,
                                                                     method: str) -> None:
    bundle = export_bundle(tmp_path / method, runs[method])
    report = json.loads((bundle / "bundle.json").read_text())["parity"]["adapters"][method]
    assert report["exact_activations"]["largest_logit_difference"] < 1e-3
    assert report["exact_activations"]["greedy_equal"] == report["prompts"]
    assert report["effect"] > 1e-3
    edgeft("verify", bundle)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "extra"), [
    ("qwen2", {}), ("phi3", {"pad_token_id": 0}), ("gpt2", {"n_inner": 96}),
    ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64})])
def test_other_architectures_mix_kinds_too(make_base: Callable[..., Path], data: Path, tmp_path: Path,
                                           model_type: str, extra: dict[str, Any]) -> None:
    """Biases behind the layers, packed gates, traced graphs with learned positions."""
    base = make_base(model_type, **extra)
    names = {"qwen2": (), "phi3": ("--target-modules", "qkv_proj,down_proj", "--feedforward-modules", "down_proj"),
             "gpt2": ("--target-modules", "c_attn"), "opt": ("--target-modules", "k_proj,v_proj")}[model_type]
    lora = train_run(tmp_path / "lora", base, data, *OPTIONS, "--lr", 0.05)
    factors = train_run(tmp_path / "ia3", base, data, *OPTIONS, "--lr", 0.05, *names, method="ia3")
    bundle = export_bundle(tmp_path / "bundle", lora, "--quant", "fp32")
    edgeft("add", bundle, factors, "--name", "ia3")
    for method in ("prompt_tuning", "prefix_tuning"):
        edgeft("add", bundle, run_of(method, base, data, tmp_path), "--name", method)
    check_mixture(load(str(bundle)), [
        ({"lora": 0.7}, "the red cat runs a tree"), ({"prefix_tuning": 1.0}, "the blue"),
        ({"prompt_tuning": 1.0, "lora": 0.5}, "one two three four five"), ({"ia3": 1.0}, "a small dog"), ({}, "the")])


def test_ia3_on_the_input_of_an_ungated_block_is_refused_beside_and_right_when_merged(
        make_base: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    base = make_base("gpt2", n_inner=96)
    run = train_run(tmp_path / "run", base, data, *OPTIONS, "--lr", 0.05, method="ia3")
    done = edgeft("export", run, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "--merge" in done.stderr
    assert not (tmp_path / "b").exists()
    report = json.loads((export_bundle(tmp_path / "m", run, "--quant", "fp32", "--merge") / "bundle.json").read_text())
    assert report["parity"]["base"]["largest_logit_difference"] < 1e-3
    assert report["parity"]["base"]["effect"] > 1e-3


@pytest.mark.parametrize("method", SOFT)
def test_a_soft_prompt_cannot_be_merged(runs: dict[str, Path], tmp_path: Path, method: str) -> None:
    done = edgeft("export", runs[method], "--device", "cpu-x86_64", "--merge", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "Export without --merge" in done.stderr
    assert not (tmp_path / "b").exists()


def test_soft_prompts_have_no_scale_and_do_not_stack(mixed: Path) -> None:
    model = load(str(mixed))
    with pytest.raises(UsageError, match="scale 1 or 0"):
        model.generate("the", adapters={"prompt_tuning": 0.5})
    with pytest.raises(UsageError, match="one only"):
        model.generate("the", adapters={"prompt_tuning": 1.0, "prefix_tuning": 1.0})
    off = model.generate("the", adapters={"prompt_tuning": 0.0}, raw=True, max_tokens=8)
    assert off.tokens == model.generate("the", adapters={}, raw=True, max_tokens=8).tokens


def test_a_soft_prompt_takes_its_part_of_the_context(mixed: Path) -> None:
    model = load(str(mixed))
    fits = model.context - 5 - 1
    prompt = [20] * fits
    assert model.lanes([{"prompt_tuning": 1.0}], fits + 1).prefill([prompt]).shape[0] == 1
    with pytest.raises(EdgeftError, match="after a soft prompt of 5"):
        model.generate("cat " * 251, adapters={"prompt_tuning": 1.0}, raw=True)


def altered(bundle: Path, adapter: str, out: Path, change: Callable[[str, np.ndarray[Any, Any]], Any]) -> Path:
    """A copy of an adapter's file with each tensor changed; None drops one."""
    file = TensorFile(bundle / "adapters" / f"{adapter}.safetensors")
    made = {name: change(name, np.array(file[name])) for name in file}
    write_tensors(out, {name: np.ascontiguousarray(array) for name, array in made.items() if array is not None},
                  file.metadata)
    return out


@pytest.mark.parametrize(("adapter", "change", "word"), [
    ("prompt_tuning", lambda name, array: array[:, :, :-1], "declared"),
    ("prompt_tuning", lambda name, array: None if name == "prefix.1.key" else array, "missing"),
    ("prompt_tuning", lambda name, array: array * np.float32("nan"), "NaN"),
    ("prompt_tuning", lambda name, array: np.repeat(array, 200, axis=1), "shorter than the context"),
    ("prompt_tuning", lambda name, array: array[:, :2] if name == "prefix.1.value" else array, "declared"),
    ("ia3", lambda name, array: np.ones_like(array), "change nothing"),
    ("colors", lambda name, array: array * (0 if name.endswith(".B") else 1), "change nothing"),
    ("ia3", lambda name, array: array[:-1], "declared"),
    ("ia3", lambda name, array: array * np.float32("inf"), "infinite")])
def test_a_file_that_does_not_fit_is_refused(mixed: Path, tmp_path: Path, adapter: str, change: Any,
                                             word: str) -> None:
    model = load(str(mixed))
    with pytest.raises(EdgeftError, match=word):
        model.load_adapter("wrong", altered(mixed, adapter, tmp_path / "wrong.safetensors", change))
    assert "wrong" not in model.shelf.names


def test_a_prefix_as_long_as_the_context_is_refused_at_export(base: Path, data: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", base, data, *OPTIONS, "--num-virtual-tokens", 40, method="prompt_tuning")
    device = tmp_path / "tiny.toml"
    text = Path(__file__).resolve().parents[2].joinpath("devices", "cpu-x86_64.toml").read_text()
    device.write_text(text.replace("context = 2048", "context = 40"))
    done = edgeft("export", run, "--device", device, "--quant", "fp32", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "shorter than the context of 40" in done.stderr
    assert not (tmp_path / "b").exists()


def test_bench_shows_that_a_soft_prompt_is_not_computed_again(mixed: Path) -> None:
    found = json.loads(edgeft("bench", mixed, "--adapter", "prompt_tuning", "--prompt-tokens", 16, "--new-tokens", 4,
                              "--json").stdout)
    assert found["soft_prompt"]["tokens"] == 5
    assert found["soft_prompt"]["computed_tokens"] == 16
    assert found["soft_prompt"]["first_token_ms_if_computed"] > 0
    assert json.loads(edgeft("bench", mixed, "--adapter", "colors", "--prompt-tokens", 16, "--new-tokens", 4,
                             "--json").stdout)["soft_prompt"] is None
