"""PEFT folders without a plugin: exact on the device's grid, and refused by name where something is off."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.contract.tensors import TensorFile, write_tensors
from tests.conftest import export_bundle
from tests.export.peft_variants import VARIANTS, build

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def made(name: str, base: Path, out: Path) -> Path:
    return build(next(item for item in VARIANTS if item.name == name), "llama", base, out)


def refusal(folder: Path, base: Path, out: Path, **options: Any) -> str:
    from edgeft import plugins
    from edgeft.export.bundle import export

    host = plugins.host()
    with warnings.catch_warnings(), pytest.raises(EdgeftError) as caught:
        warnings.simplefilter("ignore")
        export(folder, host.device("cpu-x86_64"), out, host=host, base=str(base), quant="fp32", **options)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", ["hra", "lora-pissa", "lora-dora"])
def test_a_change_that_depends_on_the_weights_fits_those_of_the_grid(base: Path, tmp_path: Path, name: str,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """HRA turns the weights, PiSSA takes a part of them, DoRA divides by their norm: the grid's, as it will run."""
    folder = made(name, base, tmp_path / "wild")
    bundle = export_bundle(tmp_path / "int4", folder, "--base", base)
    report = json.loads((bundle / "bundle.json").read_text())["parity"]["adapters"]["wild"]
    assert report["exact_activations"]["largest_logit_difference"] < 1e-3
    from edgeft.cli import main
    from edgeft.export import bundle as exporter

    monkeypatch.setattr(exporter, "rounding", lambda *_: None)  # the float base's change on the grid's weights
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main(["export", str(folder), "--base", str(base), "--device", "cpu-x86_64", "--out", str(tmp_path / "no")])
    assert ended.value.code == 1


def test_another_base_is_refused(make_base: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    deeper = made("hra", make_base(num_hidden_layers=3), tmp_path / "deeper")
    assert "layers.2" in refusal(deeper, base, tmp_path / "b")
    wider = made("hra", make_base(hidden_size=128), tmp_path / "wider")
    assert "PEFT cannot load it on this base" in refusal(wider, base, tmp_path / "b", merge=True)


def test_what_is_off_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = made("hra", base, tmp_path / "wild")
    config, file = json.loads((folder / CONFIG).read_text()), TensorFile(folder / WEIGHTS)
    tensors = {name: np.array(file[name]) for name in file}

    def wrong(message: str, config: dict[str, Any] = config, tensors: dict[str, Any] = tensors, **options: Any) -> None:
        (folder / CONFIG).write_text(json.dumps(config))
        write_tensors(folder / WEIGHTS, tensors)
        assert message in refusal(folder, base, tmp_path / "b", **options)

    wrong("PEFT type 'TOMORROW' is none that PEFT has", {**config, "peft_type": "TOMORROW"})
    wrong("HRA with hra_twist=3 cannot be exported", {**config, "hra_twist": 3})
    first = next(iter(tensors))
    wrong("holds NaN", tensors={**tensors, first: np.full_like(tensors[first], np.nan)})
    wrong("the base has no such module", tensors={**tensors, first.replace("layers.0", "layers.9"): tensors[first]})
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickled")
    assert "pickled" in refusal(folder, base, tmp_path / "b")


def test_a_tensor_that_is_missing_is_refused(base: Path, tmp_path: Path) -> None:
    folder = made("hra", base, tmp_path / "wild")
    file = TensorFile(folder / WEIGHTS)
    names = sorted(file)
    write_tensors(folder / WEIGHTS, {name: np.array(file[name]) for name in names[1:]})
    assert f"missing adapter keys while loading the checkpoint: ['{names[0]}" in refusal(folder, base, tmp_path / "b")


def test_an_adapter_that_changes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    folder = made("lora-bias-all", base, tmp_path / "wild")
    file = TensorFile(folder / WEIGHTS)
    write_tensors(folder / WEIGHTS, {name: np.zeros_like(file[name]) for name in file})
    assert "changes no weight" in refusal(folder, base, tmp_path / "b")
