"""Every graph of a bundle answers alike where it can answer at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgeft.contract.bundle import (
    DECODE_GRAPH,
    GRAPH,
    LOGITS_TO_KEEP,
    PLAIN_GRAPH,
    PREFILL_GRAPH,
    SCALED_GRAPH,
    Bundle,
    read_bundle,
)
from edgeft.contract.tensors import TensorFile
from edgeft.run import packing
from edgeft.run.adapters import open_adapter
from tests.conftest import export_bundle, train_run
from tests.run.conftest import random_lora

Array = np.ndarray[Any, Any]
IDS = np.asarray([[1, 20, 30, 40, 50], [1, 22, 33, 44, 55]])
ROWS = {PREFILL_GRAPH, DECODE_GRAPH}


def by_hand(bundle: Bundle, file: str, ids: Array, slots: dict[str, Array], keep: int | None = None,
            past: dict[str, Array] | None = None) -> tuple[Array, dict[str, Array]]:
    """Feed a graph; logits, and keys and values behind them."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = ort.InferenceSession(str(bundle.folder / file), settings, providers=["CPUExecutionProvider"])
    rows = len(ids)
    past = past or {f"past_key_values.{layer}.{part}": np.zeros((rows, heads, 0, size), np.float32)
                    for layer, (heads, size) in enumerate(bundle.prefix_layers) for part in ("key", "value")}
    mask = np.ones((rows, next(iter(past.values())).shape[2] + ids.shape[1]), np.int64)
    feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask, **past, **slots}
    if keep is not None:
        feeds[LOGITS_TO_KEEP] = np.asarray([keep], np.int64)
    names = [item.name for item in session.get_outputs()]
    made = dict(zip(names, session.run(None, feeds), strict=True))
    return made["logits"], {name: made[name.replace("past_key_values", "present")] for name in past}


def slots_of(bundle: Bundle, file: str, path: Path, rows: int = 2) -> dict[str, Array]:
    """The adapter as the graph takes it."""
    if file == PLAIN_GRAPH:
        return {}
    adapter = open_adapter("it", path, bundle)
    if file in ROWS:
        return {**packing.nothing(bundle.slots), **packing.own_matrices(bundle.slots, [(adapter, 1.0)])}
    return {**packing.side_by_side(bundle.slots, [adapter]),
            "adapter_gate": packing.gate([adapter], [{"it": 1.0}] * rows)}


def none_of(bundle: Bundle, file: str) -> dict[str, Array]:
    return packing.nothing(bundle.slots) if file in ROWS else {}


def check_all(bundle: Bundle, path: Path) -> None:
    """With the adapter and without, at a prompt and at one more token, all graphs that can give the same logits."""
    files = [file for file in (PLAIN_GRAPH, PREFILL_GRAPH, GRAPH, SCALED_GRAPH, DECODE_GRAPH)
             if file in bundle.manifest["files"]]
    assert {PLAIN_GRAPH, PREFILL_GRAPH, DECODE_GRAPH, GRAPH} <= set(files)
    token = np.asarray([[60], [70]])
    found: dict[bool, list[Array]] = {}
    for with_it in (True, False):
        slots = (lambda file: slots_of(bundle, file, path)) if with_it else (lambda file: none_of(bundle, file))
        whole, past = by_hand(bundle, GRAPH, IDS, slots(GRAPH))
        step, _ = by_hand(bundle, GRAPH, token, slots(GRAPH), past=past)
        for file in files:
            if file == PLAIN_GRAPH and with_it:
                continue
            if file != DECODE_GRAPH:
                assert np.abs(by_hand(bundle, file, IDS, slots(file))[0] - whole).max() < 1e-4, file
            again, _ = by_hand(bundle, file, token, slots(file), past=past)
            assert np.abs(again - step).max() < 1e-4, file
        found[with_it] = [whole, step]
    assert all(np.abs(one - other).max() > 1e-2 for one, other in zip(*found.values(), strict=True))


def test_every_graph_gives_the_same_logits(bundle: Path) -> None:
    opened = read_bundle(bundle)
    check_all(opened, bundle / "adapters" / "colors.safetensors")


@pytest.mark.parametrize(("rank", "every"), [(1, 1), (9, 1), (4, 3)])
def test_adapters_of_any_rank_and_some_modules_too(bundle: Path, tmp_path: Path, rank: int, every: int) -> None:
    check_all(read_bundle(bundle), random_lora(bundle, tmp_path / "a.safetensors", 3, rank=rank, every=every))


@pytest.mark.parametrize("file", [GRAPH, SCALED_GRAPH, PLAIN_GRAPH, PREFILL_GRAPH])
def test_logits_are_kept_for_as_many_last_tokens_as_are_asked_for(bundle: Path, file: str) -> None:
    opened = read_bundle(bundle)
    slots = none_of(opened, file)
    whole, _ = by_hand(opened, file, IDS, slots)
    assert whole.shape[1] == IDS.shape[1]
    for keep in (0, 1, 3):
        found, _ = by_hand(opened, file, IDS, slots, keep)
        assert found.shape[1] == (keep or IDS.shape[1])
        assert np.abs(found - whole[:, -keep:]).max() < 1e-5
    assert np.abs(whole[:, -1] - whole[:, -2]).max() > 1e-3


def test_rows_bring_their_own_matrices(bundle: Path, tmp_path: Path) -> None:
    """Two rows, two adapters: each as it is alone, and not as the other."""
    opened = read_bundle(bundle)
    made = [packing.own_matrices(opened.slots, [(open_adapter("a", random_lora(
        bundle, tmp_path / f"{seed}.safetensors", seed), opened), 1.0)]) for seed in (1, 2)]
    both = {name: np.concatenate([row[name] for row in made]) for name in made[0]}
    ids = np.repeat(IDS[:1], 2, axis=0)
    found, _ = by_hand(opened, PREFILL_GRAPH, ids, both)
    for row, slots in enumerate(made):
        alone, _ = by_hand(opened, PREFILL_GRAPH, ids, slots)
        assert np.abs(found[row] - alone[0]).max() < 1e-4
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize(("model_type", "extra", "blocks"), [
    ("llama", {"num_key_value_heads": 4, "intermediate_size": 97}, 3),
    ("llama", {"num_key_value_heads": 1, "head_dim": 32}, 6),
    ("llama", {"num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 16}, 1),  # 18 would be too many
    ("qwen2", {}, 4),
    ("phi3", {"pad_token_id": 0}, 1)])
def test_other_architectures_too(make_base: Callable[..., Path], data: Path, tmp_path: Path, model_type: str,
                                 extra: dict[str, Any], blocks: int) -> None:
    """Biases, packed layers, odd widths: blocks of the widths that divide them, or one block for all."""
    run = train_run(tmp_path / "run", make_base(model_type, **extra), data, "--max-steps", 2, "--batch-size", 8,
                    "--lr", 0.05)
    folder = export_bundle(tmp_path / "bundle", run, "--quant", "fp32")
    opened = read_bundle(folder)
    assert opened.slots[0].blocks == blocks  # of q, k and v
    check_all(opened, random_lora(folder, tmp_path / "a.safetensors", 3, rank=5))


def test_the_graphs_share_their_weights(bundle: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in bundle.glob("*.onnx*")}
    weights = sizes.pop("model.onnx.data")
    assert PLAIN_GRAPH in sizes
    assert max(sizes.values()) < weights
    assert TensorFile(bundle / "adapters" / "colors.safetensors").metadata["base_fingerprint"]
