"""`edgeft bench`: what it prints, the peers beside it, the chart."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Model, load, peers
from edgeft.run.bench import bench, describe, draw, measure, tokens, variants
from edgeft.run.chart import chart
from tests.conftest import edgeft

SMALL = {"prompt_tokens": 16, "new_tokens": 8, "repeats": 1, "batch": 4}
WORDS = ("--prompt-tokens", 16, "--new-tokens", 8, "--repeats", 1, "--batch", 3)
PEER = '{"prefill": 100.0, "decode": 50.0, "peak_mib": 80.0}'


@pytest.fixture(scope="module")
def result(int4_bundle: Path) -> dict[str, Any]:
    return bench(int4_bundle, None, **SMALL)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter in whose hands every peer answers the same."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho '{PEER}'\n")
    path.chmod(0o755)
    return path


def test_the_keys_that_others_rely_on(int4_bundle: Path) -> None:
    found = json.loads(edgeft("bench", int4_bundle, *WORDS, "--json").stdout)
    assert {"prefill", "decode", "peak_mib", "adapter", "threads", "first_token_ms", "load_ms", "adapters", "quant",
            "prompt_tokens", "new_tokens", "repeats", "soft_prompt", "base", "adapter_price", "first_load_ms",
            "swap_ms", "batch"} <= found.keys()
    assert "peers" not in found
    assert found["batch"]["rows"] == found["batch"]["adapters"] == 3


def test_each_figure_is_of_what_it_says(result: dict[str, Any]) -> None:
    assert result["adapter"] == "colors"
    assert result["adapter_price"] == pytest.approx(1 - result["decode"] / result["base"]["decode"], abs=1e-3)
    assert min(result["prefill"], result["decode"], result["first_load_ms"], result["swap_ms"]) > 0
    assert result["base"]["peak_mib"] <= result["peak_mib"] <= result["batch"]["peak_mib"]
    assert result["batch"] == {**result["batch"], "rows": 4, "adapters": 4, "prompt_tokens": 16, "new_tokens": 4}


def test_the_bare_base_has_no_adapters_to_measure(int4_bundle: Path) -> None:
    found = bench(int4_bundle, {}, **{**SMALL, "batch": 0})
    assert found["adapter"] is found["adapter_price"] is found["swap_ms"] is found["first_load_ms"] is None
    assert found["batch"] is None
    assert "swap" not in describe(found)


def test_every_row_of_the_batch_has_an_adapter_of_its_own(int4_bundle: Path, tmp_path: Path) -> None:
    """Other adapters first, then scales; and never one twice."""
    model = load(int4_bundle)
    assert variants(model, {"colors": 1.0}, 3) == [{"colors": 1.0}, {"colors": 0.9}, {"colors": 0.8}]
    model.register_adapter("other", copied(int4_bundle, tmp_path / "other.safetensors"))
    found = variants(model, {"colors": 1.0}, 40)
    assert found[1] == {"other": 1.0}
    assert len({tuple(row.items()) for row in found}) == 40
    assert all(scale > 0 for row in found for scale in row.values())
    assert variants(model, {}, 3) == [{}]


def copied(bundle: Path, out: Path) -> Path:
    """The bundle's adapter under another name."""
    file = TensorFile(bundle / "adapters" / "colors.safetensors")
    write_tensors(out, {name: np.array(file[name]) for name in file}, file.metadata)
    return out


def test_what_is_measured_leaves_the_model_as_it_was(int4_bundle: Path) -> None:
    """Every cache is given back, no adapter stays in use, and answers are the same."""
    model = load(int4_bundle)
    before = model.generate("the red cat").tokens
    measure(model, {"colors": 1.0}, **SMALL)
    reserved = model.budget.reserved
    measure(model, {"colors": 1.0}, **SMALL)
    assert model.budget.reserved == reserved
    model.unload_adapter("colors")
    assert model.generate("the red cat").tokens == before


def test_binding_is_all_that_a_first_pass_waits_for(int4_bundle: Path) -> None:
    """After `bind` a pass of the row packs nothing more; before it, it does."""
    model = load(int4_bundle)
    lanes = model.lanes([{"colors": 1.0}], 32)
    packed: list[object] = []
    pack = model.shelf._packed
    model.shelf._packed = lambda mix: packed.append(mix) or pack(mix)  # type: ignore[method-assign,func-returns-value]
    lanes.bind(0)  # type: ignore[union-attr]
    assert len(packed) == 1
    lanes.prefill([tokens(model, 8)])
    lanes.step([3])
    assert len(packed) == 1
    lanes.close()


def test_a_batch_that_does_not_fit_is_said_beside_the_rest(int4_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise EdgeftError("no room")

    monkeypatch.setattr("edgeft.run.bench.mixed", refuse)
    found = bench(int4_bundle, None, **SMALL)
    assert found["batch"] == {"rows": 4, "refused": "no room"}
    assert "4 requests: no room" in describe(found)
    assert all("requests at once" not in name for name, _ in peers.charted(found))


def test_more_tokens_than_the_context_are_refused(model_of_int4: Model) -> None:
    with pytest.raises(UsageError, match="more than the bundle's context"):
        measure(model_of_int4, {}, prompt_tokens=model_of_int4.context, new_tokens=1)


@pytest.fixture(scope="module")
def model_of_int4(int4_bundle: Path) -> Model:
    return load(int4_bundle)


def test_a_missing_peer_is_one_line(int4_bundle: Path) -> None:
    done = edgeft("bench", int4_bundle, *WORDS, "--compare")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("onnxruntime-genai", "llama.cpp"))]
    assert len(lines) == 2
    assert lines[1] == "llama.cpp: not run: give it --gguf FILE of the same base"


def test_a_peer_that_breaks_is_one_line_and_one_that_runs_has_ratios(result: dict[str, Any], tmp_path: Path,
                                                                     python: Path) -> None:
    gguf = tmp_path / "base.gguf"
    gguf.write_bytes(b"not one")
    for broken, said in (("kill -11 $$", "signal 11"), ("echo oh >&2; exit 3", "it failed: oh")):
        other = tmp_path / "broken"
        other.write_text(f"#!/bin/sh\n{broken}\n")
        other.chmod(0o755)
        found = peers.compare(tmp_path, result, python=str(other), gguf=gguf, gguf_lora=gguf)
        assert [said in entry["missing"] for entry in found] == [True, True]  # its adapter is not tried again
    assert "cannot be started" in peers.compare(tmp_path, result, python=str(tmp_path / "nobody"))[0]["missing"]
    found = peers.compare(tmp_path, result, python=str(python), gguf=gguf, gguf_lora=gguf)
    assert [(entry["peer"], entry["adapter"]) for entry in found] == [
        ("onnxruntime-genai", False), ("llama.cpp", False), ("llama.cpp", True)]
    text = peers.describe({**result, "peers": found}).splitlines()
    assert f"{result['decode'] / 50:.2f}" in text[-1]  # with the adapter against theirs with it
    assert f"{result['base']['decode'] / 50:.2f}" in text[-2]


def test_a_peers_process_says_when_it_is_not_installed(result: dict[str, Any], tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """By this interpreter, with the peers made impossible to import."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['onnxruntime_genai'] = sys.modules['llama_cpp'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "b.gguf").touch()
    found = peers.compare(tmp_path, result, gguf=tmp_path / "b.gguf")
    assert all(entry["missing"].startswith(f"not installed in {sys.executable}") for entry in found)


@pytest.mark.parametrize(("more", "said"), [
    (("--gguf", "x.gguf"), "--compare"), (("--compare", "--gguf-lora", "x.gguf"), "--gguf"),
    (("--compare", "--gguf", "nowhere.gguf"), "no such file"), (("--chart", "nowhere/c.svg"), "folder that is there")])
def test_words_that_are_off_are_refused_before_measuring(int4_bundle: Path, more: tuple[str, ...], said: str) -> None:
    done = edgeft("bench", int4_bundle, *more, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_chart_is_xml_with_a_bar_per_measurement(result: dict[str, Any], tmp_path: Path, python: Path) -> None:
    compared = {**result, "peers": peers.compare(tmp_path, result, python=str(python))}
    for found, bars in ((result, 2 + 2 + 2 + 2), (compared, 3 + 3 + 2 + 3)):
        draw(tmp_path / "c.svg", "a <bundle> & more", found)
        root = ElementTree.parse(tmp_path / "c.svg").getroot()
        drawn = [item for item in root.iter("{http://www.w3.org/2000/svg}rect") if "bar" in item.get("class", "")]
        assert len(drawn) == bars
        texts = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
        assert sum("tokens/s" in text for text in texts) >= 3
        assert any("MiB" in text for text in texts)
        assert f"{found['decode']:,.1f}" in texts


def test_bars_of_a_panel_share_one_scale() -> None:
    panels = [("p", [("edgeft", 10.0), ("other", 5.0)]), ("q", [("edgeft", 1.0)])]
    root = ElementTree.fromstring(chart("t", "n", panels))
    wide, half, alone = [float(item.get("width", 0)) for item in root.iter("{http://www.w3.org/2000/svg}rect")
                         if "bar" in item.get("class", "")]
    assert half == pytest.approx(wide / 2, abs=0.1)
    assert alone == wide


def test_a_chart_that_cannot_be_written_is_one_message(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EdgeftError, match="cannot be written"):
        draw(tmp_path / "not there" / "c.svg", "b", result)
