"""The provider that a bundle names: used, refused with what to install, and never left in silence."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.run import load, provider, session
from tests.conftest import edgeft
from tests.export.test_standard import export_for, standard
from tests.run.test_events import log

__all__ = ["log", "standard"]
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import place_openvino  # noqa: E402
import place_python  # noqa: E402

needs_openvino = pytest.mark.skipif(bool(place_openvino.missing()), reason=place_openvino.missing() or "there")


def test_a_provider_that_is_not_installed(standard: Path) -> None:
    done = edgeft("run", standard, "--prompt", "one", check=False)
    assert done.returncode == 1
    assert "declared OpenVINOExecutionProvider" in done.stderr
    assert "Install onnxruntime-openvino" in done.stderr
    assert done.stdout == ""
    asked = edgeft("run", standard, "--prompt", "one", "--provider", provider.CPU, "--max-tokens", 2, "--json")
    assert len(json.loads(asked.stdout)["tokens"]) == 2


def test_a_provider_with_a_typo(bundle: Path) -> None:
    with pytest.raises(EdgeftError, match="Did you mean 'CPUExecutionProvider'"):
        load(bundle, provider="CPUExecutionProvide")


class Placed:
    """A session that says where its nodes went."""

    def __init__(self, *providers: str) -> None:
        self.providers = list(providers)

    def get_providers(self) -> list[str]:
        return self.providers


def test_a_fallback_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check(placed: dict[str, Counter[str]], *providers: str) -> str:
        monkeypatch.setattr(provider, "placement", lambda _: placed)
        provider.check_placed("it", "XProvider", Placed(*providers))  # type: ignore[arg-type]
        return capsys.readouterr().err

    mine = Counter({"MatMul": 3})
    assert check({"XProvider": mine}, "XProvider") == ""
    said = check({"XProvider": mine, provider.CPU: Counter({"Gather": 2})}, "XProvider", provider.CPU)
    assert said == "it: 2 of 5 nodes run on the processor, not on XProvider: 2 Gather\n"
    for providers in ([provider.CPU], ["XProvider", provider.CPU]):
        with pytest.raises(EdgeftError, match="runs none of the graph"):
            check({provider.CPU: mine}, *providers)


def test_a_fallback_is_in_the_log(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = {"XProvider": Counter({"MatMul": 3}), provider.CPU: Counter({"Gather": 2})}
    monkeypatch.setattr(provider, "placement", lambda _: placed)
    provider.check_placed("it", "XProvider", Placed(*placed))  # type: ignore[arg-type]
    (line,) = log()
    assert (line["event"], line["graph"], line["to"]) == ("fallback", "it", provider.CPU)
    assert line["message"] == "it: 2 of 5 nodes run on the processor, not on XProvider: 2 Gather"


def test_optional_slots_on_a_provider_that_freezes_them(bundle: Path, standard: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FREEZES", {provider.CPU})
    with pytest.raises(EdgeftError, match="an adapter would change nothing"):
        load(bundle).graphs.get("model.onnx")
    model = load(standard, provider=provider.CPU)
    wanted = model.generate("one", adapters={}, max_tokens=8).tokens
    assert model.generate("one", adapters={"colors": 1.0}, max_tokens=8).tokens != wanted


def test_fixed_sizes_in_a_manifest_are_checked(standard: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(standard, made)
    manifest = json.loads((made / "bundle.json").read_text())
    for wrong in ({}, {"chunk": "8", "cache": 8, "rank": 1}, {"chunk": 8, "cache": 8, "rank": 1, "prefill": "../x",
                                                              "decode": "model.static-decode.onnx"}, []):
        manifest["graph"]["static"] = wrong
        (made / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(EdgeftError, match=r"graph\.static"):
            load(made, provider=provider.CPU)


def questions(adapters: list[str | None]) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [{"prompt_tokens": draw.integers(3, 300, count).tolist(), "adapter": adapter}
            for count in (1, 40) for adapter in adapters]


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("quant", ["fp32", "int4"])
@pytest.mark.parametrize("device", ["intel-cpu-openvino", "intel-npu"])
def test_openvino_answers_alike_and_runs_every_node(lora_run: Path, tmp_path: Path, device: str, quant: str) -> None:
    text = (ROOT / "devices" / f"{device}.toml").read_text()
    (tmp_path / f"{device}.toml").write_text(text.replace("block = 64", "block = 32"))  # the tiny base has rows of 96
    made = export_for(tmp_path / f"{device}.toml", tmp_path / "made", lora_run, "--quant", quant)
    asked = questions([None, "colors"])
    found = place_openvino.ask(made, asked, 24)
    model = load(made, provider=provider.CPU)
    for question, there in zip(asked, found["answers"], strict=True):
        here = place_python.answer(model, question, 24)
        assert there["tokens"] == here["tokens"]
        assert np.abs(np.subtract(there["logits"], here["logits"])).max() < 1e-3
    bare, tuned = (answer["logits"] for answer in found["answers"][:2])
    assert np.abs(np.subtract(bare, tuned)).max() > 1e-2
    assert found["placement"]
    for counts in found["placement"].values():
        assert set(counts) == {place_openvino.PROVIDER}
