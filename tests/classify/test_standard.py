"""An encoder for a provider that takes standard operators alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeft.contract.bundle import GRAPH
from edgeft.export.lower import not_standard
from edgeft.run import load
from tests.conftest import export_bundle
from tests.export.test_standard import export_for


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_an_encoder_in_standard_operators(make_encoder: Callable[..., Path], tmp_path: Path, quant: str) -> None:
    folder = make_encoder("bert")
    made = export_for("intel-cpu-openvino", tmp_path / "made", folder, "--quant", quant)
    assert not_standard(ir.load(made / GRAPH).graph) == []
    assert dict(ir.load(made / GRAPH).opset_imports) == {"": 21}
    ours = load(made, provider="CPUExecutionProvider").embed(["the red cat", "two dogs"])
    if quant == "fp32":
        theirs = load(export_bundle(tmp_path / "ordinary", folder, "--quant", quant)).embed(["the red cat", "two dogs"])
        assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours[0] - ours[1]).max() > 1e-4
