"""Adapters of every kind made on the spot, for a bundle that was trained once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Model, load

PROMPTS = ["the red cat runs a tree", "the blue house", "one two three four five one two three four five", "a",
           "a small dog likes the green bird in the tree", "the"]


def random_lora(bundle: Path, out: Path, seed: int, rank: int = 3, size: float = 0.3, every: int = 1) -> Path:
    """An adapter of its own rank, on every n-th module only."""
    draw = np.random.default_rng(seed)
    pairs, _ = read_bundle(bundle).module_shapes
    made = {}
    for module, (narrow, wide) in list(pairs.items())[::every]:
        made[f"{module}.A"] = draw.normal(0, size, (narrow, rank)).astype(np.float32)
        made[f"{module}.B"] = draw.normal(0, size, (rank, wide)).astype(np.float32)
    return _write(bundle, out, made)


def broken(bundle: Path, out: Path, word: str, value: float = 1e30) -> Path:
    """An adapter of finite numbers, far too large in the modules whose name holds `word`, and tame elsewhere."""
    file = TensorFile(random_lora(bundle, out.with_name("tame.safetensors"), 3, size=0.1))
    tensors = {name: np.full_like(file[name], value) if word in name else np.array(file[name]) for name in file}
    write_tensors(out, tensors, file.metadata)
    return out


def random_factors(bundle: Path, out: Path, seed: int) -> Path:
    """What IA3 lowers to."""
    draw = np.random.default_rng(seed)
    _, scales = read_bundle(bundle).module_shapes
    return _write(bundle, out, {f"{module}.scale": draw.uniform(0.2, 2, width).astype(np.float32)
                                for module, width in scales.items()})


def random_prefix(bundle: Path, out: Path, seed: int, length: int = 5) -> Path:
    """What a soft prompt lowers to."""
    draw = np.random.default_rng(seed)
    return _write(bundle, out, {
        f"prefix.{layer}.{part}": draw.normal(0, 1, (heads, length, width)).astype(np.float32)
        for layer, (heads, width) in enumerate(read_bundle(bundle).prefix_layers) for part in ("key", "value")})


def _write(bundle: Path, out: Path, tensors: dict[str, np.ndarray]) -> Path:
    fingerprint = TensorFile(next((bundle / "adapters").glob("*.safetensors"))).metadata["base_fingerprint"]
    write_tensors(out, tensors, {"base_fingerprint": fingerprint})
    return out


@pytest.fixture(scope="session")
def kinds(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter files by name: low ranks of different sizes, a soft prompt, factors."""
    folder = tmp_path_factory.mktemp("kinds")
    return {"low": random_lora(bundle, folder / "low.safetensors", 1),
            "wide": random_lora(bundle, folder / "wide.safetensors", 2, rank=11, size=0.15),
            "part": random_lora(bundle, folder / "part.safetensors", 3, every=3, size=0.6),
            "soft": random_prefix(bundle, folder / "soft.safetensors", 4),
            "factors": random_factors(bundle, folder / "factors.safetensors", 5)}


# Every way to use them; all answer differently.
MIXES: list[dict[str, float]] = [
    {"low": 1.0}, {}, {"wide": 1.0, "part": 0.5}, {"soft": 1.0}, {"part": 1.0}, {"low": 0.4},
    {"soft": 1.0, "wide": 0.7}, {"low": -0.5, "wide": 0.5}, {"factors": 1.0}, {"factors": 0.5, "low": 1.0}]


def open_model(bundle: Path, kinds: dict[str, Path], **options: object) -> Model:
    """The bundle with all of them registered."""
    model = load(str(bundle)) if not options else Model(bundle, **options)  # type: ignore[arg-type]
    for name, path in kinds.items():
        model.register_adapter(name, path)
    return model
