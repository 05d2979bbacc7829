"""Prepared weights: the same answers from one shared file, never believed when stale, replaced in one step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import load
from edgeft.run import prepared as preparation
from edgeft.run.health import check_equal, difference, outputs
from edgeft.run.install import install, remove_prepared
from edgeft.run.prepare import prepare
from edgeft.run.prepared import find_prepared, read_prepared
from edgeft.run.verify import verify
from tests.conftest import edgeft

PROMPTS = ["the red cat runs a tree", "the blue dog sees a house"]


@pytest.fixture
def fresh(int4_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the int4 bundle."""
    return Path(shutil.copytree(int4_bundle, tmp_path / "bundle"))


@pytest.fixture
def ready(fresh: Path) -> Path:
    """The same, installed."""
    install(fresh)
    return fresh


def answers(folder: Path) -> list[Any]:
    """Tokens with and without the adapter, alone and mixed in one batch."""
    model = load(folder, threads=1)
    wanted: list[dict[str, float]] = [{"colors": 1.0}, {}]
    found = [model.generate(prompt, adapters=adapters, max_tokens=12, temperature=0).tokens
             for prompt in PROMPTS for adapters in wanted]
    return [found, [item.tokens for item in model.batch(PROMPTS, adapters=wanted, max_tokens=12, temperature=0)]]


def weights(folder: Path) -> Path:
    """The one file of prepared weights."""
    (found,) = (folder / "prepared").glob("weights-*.data")
    return found


def flip(path: Path) -> None:
    """Turn many bytes over, all over the file, without changing its size."""
    with path.open("r+b") as stream:
        for place in range(0, path.stat().st_size, 97):
            stream.seek(place)
            byte = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte[0] ^ 0x5A]))


@pytest.mark.parametrize("kind", ["int4_bundle", "bundle"])
def test_prepared_answers_are_the_same(kind: str, tmp_path: Path, request: pytest.FixtureRequest,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "bundle"))
    before = answers(folder)
    result = install(folder)
    opened: list[Path] = []
    real = preparation.start
    monkeypatch.setattr(preparation, "start",
                        lambda graph, place, *rest: opened.append(place) or real(graph, place, *rest))
    assert answers(folder) == before
    assert opened
    assert all(place.name == "prepared" for place in opened)
    assert result["graphs"] == sorted(path.name for path in folder.glob("*.onnx"))
    assert before[0][0] != before[0][1], "the adapter changes nothing, so this test sees nothing"


def test_every_graph_equals_its_export_with_slots_in_use(ready: Path) -> None:
    bundle = read_bundle(ready)
    for name in preparation.graph_names(bundle):
        expected, found = outputs(ready / name, shared=True), outputs(ready / "prepared" / name, shared=True,
                                                                      prepared=True)
        assert expected.keys() == found.keys()
        for way in expected:
            assert difference(expected[way]["logits"], found[way]["logits"]) < 1e-5
        if "in use" in expected:
            assert difference(expected["at rest"]["logits"], expected["in use"]["logits"]) > 1e-3


def test_difference_sees_nan_shapes_and_absence() -> None:
    one = np.ones((2, 3), np.float32)
    assert difference(one, one) == 0
    assert difference(one, one + 1e-3) == pytest.approx(1e-3, rel=1e-3)
    for other in (None, one[:1], one * np.nan):
        assert difference(one, other) == float("inf")
    assert difference(one * np.nan, one * np.nan) == float("inf")


def test_all_graphs_share_one_file(ready: Path, tmp_path: Path) -> None:
    """Five graphs take little more than one does."""
    single = Path(shutil.copytree(ready, tmp_path / "single"))
    manifest = json.loads((single / "bundle.json").read_text())
    for name in [name for name in manifest["files"] if name.endswith(".onnx") and name != "model.onnx"]:
        del manifest["files"][name]
    (single / "bundle.json").write_text(json.dumps(manifest))
    prepare(read_bundle(single))
    assert [path.name for path in (single / "prepared").glob("*.onnx")] == ["model.onnx"]
    assert len(list((ready / "prepared").glob("*.onnx"))) > 2
    assert weights(ready).stat().st_size < 1.3 * weights(single).stat().st_size


def test_installing_again_finds_it_done(ready: Path) -> None:
    before = (ready / "prepared").stat().st_ino
    assert install(ready)["already"]
    assert (ready / "prepared").stat().st_ino == before
    flip(weights(ready))
    assert not install(ready)["already"]
    assert (ready / "prepared").stat().st_ino != before
    assert install(ready)["already"]


@pytest.mark.parametrize("key", ["onnxruntime", "cpu", "isa"])
def test_stale_is_made_again_and_said_once(ready: Path, key: str, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**preparation.machine(), key: ["avx9"] if key == "isa" else "another"}
    monkeypatch.setattr(preparation, "machine", lambda: other)
    monkeypatch.setattr("edgeft.run.prepare.machine", lambda: other)
    assert find_prepared(read_bundle(ready)) is not None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert key in said
    assert "prepared again, once" in said
    assert find_prepared(read_bundle(ready)) is not None
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_falls_back_and_says_so(ready: Path, capsys: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(ready)
    assert capsys.readouterr().err == ""
    other = {**preparation.machine(), "onnxruntime": "0.0"}
    monkeypatch.setattr(preparation, "machine", lambda: other)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find_prepared(read_bundle(ready)) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written" in said
    assert f"Run `edgeft install {ready}`" in said
    assert answers(ready) == before
    monkeypatch.undo()
    assert find_prepared(read_bundle(ready)) is not None


def test_a_full_disk_while_it_is_made_again_falls_back(ready: Path, capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise EdgeftError("prepared: cannot be written (No space left on device).")

    weights(ready).write_bytes(b"short")
    monkeypatch.setattr("edgeft.run.prepare.prepare", full)
    assert find_prepared(read_bundle(ready)) is None
    assert "No space left" in capsys.readouterr().err


def test_adapters_come_and_go_beside_prepared_weights(ready: Path, lora_run: Path) -> None:
    edgeft("add", ready, lora_run, "--name", "more")
    found = load(ready)
    assert found.graphs.prepared is not None
    assert found.generate(PROMPTS[0], adapters={"more": 1.0}).tokens \
        == found.generate(PROMPTS[0], adapters={"colors": 1.0}).tokens
    edgeft("verify", ready)


def test_graphs_of_another_export_are_stale_and_adapters_are_not(ready: Path) -> None:
    edgeft("remove", ready, "colors")
    assert read_prepared(read_bundle(ready)) is not None
    manifest = json.loads((ready / "bundle.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    (ready / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(EdgeftError, match="other graphs"):
        read_prepared(read_bundle(ready))


def test_corrupted_weights_are_found(ready: Path) -> None:
    flip(weights(ready))
    with pytest.raises(EdgeftError, match=r"weights-.*declared sha256 .* found"):
        verify(ready)
    bundle = read_bundle(ready)
    with pytest.raises(EdgeftError, match=r"answers otherwise|cannot be run"):
        check_equal(bundle, "model.onnx", ready / "prepared" / "model.onnx")


@pytest.mark.parametrize("damage", ["graph", "short", "missing", "outside", "linked", "json", "format"])
def test_damage_is_not_believed(ready: Path, damage: str) -> None:
    graph, manifest = ready / "prepared" / "model.onnx", ready / "prepared" / "prepared.json"
    if damage == "graph":
        flip(graph)
    elif damage == "short":
        weights(ready).write_bytes(weights(ready).read_bytes()[:-1])
    elif damage == "missing":
        weights(ready).unlink()
    elif damage == "outside":
        text = manifest.read_text().replace('"model.onnx": {', '"../model.onnx": {')
        manifest.write_text(text)
    elif damage == "linked":
        shutil.move(graph, ready / "elsewhere.onnx")
        graph.symlink_to(ready / "elsewhere.onnx")
    else:
        manifest.write_text("{" if damage == "json" else '{"format": 99}')
    with pytest.raises(EdgeftError, match="cannot be used"):
        read_prepared(read_bundle(ready))
    assert find_prepared(read_bundle(ready)) is not None
    verify(ready)


def test_a_failed_health_check_changes_nothing(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((path.name, path.stat().st_ino) for path in (ready / "prepared").iterdir())
    real = outputs

    def wrong(graph: Path, *, shared: bool, prepared: bool = False) -> Any:
        made = real(graph, shared=shared, prepared=prepared)
        return {way: {name: array + prepared for name, array in found.items()} for way, found in made.items()}

    monkeypatch.setattr("edgeft.run.health.outputs", wrong)
    with pytest.raises(EdgeftError, match="answers otherwise"):
        prepare(read_bundle(ready))
    assert sorted((path.name, path.stat().st_ino) for path in (ready / "prepared").iterdir()) == before
    assert not list(ready.glob(".prepared.*"))


def test_install_to_a_place_keeps_the_previous_one(fresh: Path, bundle: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "device" / "model"
    install(bundle, to)
    assert not to.with_name("model.previous").exists()
    assert answers(to) == answers(bundle)
    monkeypatch.setattr("edgeft.run.prepare.check_equal", _fail)
    with pytest.raises(EdgeftError, match="unwell"):
        install(fresh, to)
    monkeypatch.undo()
    assert read_bundle(to).manifest == read_bundle(bundle).manifest
    install(fresh, to)
    assert read_bundle(to).manifest == read_bundle(fresh).manifest
    previous = to.with_name("model.previous")
    assert read_bundle(previous).manifest == read_bundle(bundle).manifest
    assert read_prepared(read_bundle(previous)) is not None
    assert install(fresh, to)["already"]
    assert read_bundle(previous).manifest == read_bundle(bundle).manifest, "the same again is no new version"
    assert sorted(path.name for path in to.parent.iterdir()) == ["model", "model.previous"]


def _fail(*_: object) -> None:
    raise EdgeftError("unwell")


def test_install_refuses_what_is_not_as_exported(fresh: Path, tmp_path: Path) -> None:
    flip(fresh / "model.onnx.data")
    with pytest.raises(EdgeftError, match=r"model.onnx.data  declared sha256"):
        install(fresh, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_install_refuses_places_that_are_not_its_own(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for to, why in ((tmp_path / "mine", "is no bundle"), (fresh / "inside", "within"), (tmp_path, "within")):
        with pytest.raises(UsageError, match=why):
            install(fresh, to)
    done = edgeft("install", fresh, "--to", tmp_path / "x", "--remove", check=False)
    assert done.returncode == 2
    assert "choose one" in done.stderr


def test_the_command_and_its_way_back(fresh: Path) -> None:
    result = json.loads(edgeft("install", fresh, "--json").stdout)
    assert result["prepared"]
    assert result["bytes"] == sum(path.stat().st_size for path in (fresh / "prepared").iterdir()
                                  if path.name != "prepared.json")
    assert "was prepared already" in edgeft("install", fresh).stdout
    assert "every digest" in edgeft("verify", fresh).stdout
    assert json.loads(edgeft("install", fresh, "--remove", "--json").stdout)["removed"]
    assert not (fresh / "prepared").exists()
    assert not remove_prepared(fresh)
    assert not list(fresh.glob(".prepared*"))


KILLED = """
import os, signal, sys
from unittest import mock
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
name, after = sys.argv.pop(1), sys.argv.pop(1) == "after"
import importlib
module, _, attribute = name.rpartition(".")
real = getattr(importlib.import_module(module), attribute)
def then_die(*given, **named): real(*given, **named); die()
from edgeft.cli import main
with mock.patch(name, then_die if after else die): main(sys.argv[1:])
"""
MOMENTS = [("edgeft.run.prepare._prepare_graph", "before"), ("edgeft.run.prepare._prepare_graph", "after"),
           ("edgeft.run.prepare.check_equal", "before"), ("edgeft.contract.files.sync_tree", "before"),
           ("edgeft.contract.files.exchange", "before"), ("edgeft.contract.files.exchange", "after")]


def killed(moment: tuple[str, str], *arguments: object) -> None:
    """Run `edgeft install` in a process that kills itself before or after it calls a function."""
    done = subprocess.run([sys.executable, "-c", KILLED, *moment, "install", *map(str, arguments)], check=False,
                          capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_it_prepares_the_old_or_the_new_is_there(ready: Path, moment: tuple[str, str]) -> None:
    wanted = load(ready).generate(PROMPTS[0], max_tokens=4, temperature=0).tokens
    flip(weights(ready))  # so that it is made again
    killed(moment, ready)
    prepared = read_prepared(read_bundle(ready))
    assert prepared is not None
    if moment == ("edgeft.contract.files.exchange", "after"):
        prepared.check_whole()
    else:
        with pytest.raises(EdgeftError, match="weights-"):
            prepared.check_whole()
    install(ready)
    assert not list(ready.glob(".prepared.*"))
    assert load(ready).generate(PROMPTS[0], max_tokens=4, temperature=0).tokens == wanted


@pytest.mark.parametrize("moment", [("edgeft.run.prepare.check_equal", "before"),
                                    ("edgeft.run.rollback.exchange", "before"),
                                    ("edgeft.run.rollback.exchange", "after")])
def test_killed_while_it_switches_the_old_or_the_new_is_there(fresh: Path, bundle: Path, tmp_path: Path,
                                                             moment: tuple[str, str]) -> None:
    to = tmp_path / "device"
    install(bundle, to)
    killed(moment, fresh, "--to", to)
    found = read_bundle(to)
    assert found.manifest == read_bundle(fresh if moment[1] == "after" else bundle).manifest
    assert read_prepared(found) is not None
    found.check_files(whole=True)
    install(fresh, to)
    assert read_bundle(to).manifest == read_bundle(fresh).manifest
    assert not list(tmp_path.glob(".device.*"))


def test_a_device_that_prepares_by_itself_is_left_alone(ready: Path) -> None:
    manifest = json.loads((ready / "bundle.json").read_text())
    manifest["device"]["run"]["provider"] = "OpenVINOExecutionProvider"
    (ready / "bundle.json").write_text(json.dumps(manifest))
    assert find_prepared(read_bundle(ready)) is None
    assert not install(ready)["prepared"]
    assert "by itself" in edgeft("install", ready).stdout
