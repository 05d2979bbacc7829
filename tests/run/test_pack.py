"""Bundles and adapters moved as one file: equal bytes for equal bundles, whole again elsewhere, or refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import describe_file, read_bundle
from edgeft.contract.container import write_end, write_member
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import load
from edgeft.run.install import install
from edgeft.run.install_adapter import install_adapter
from edgeft.run.pack import encode, encode_bundle, pack
from edgeft.run.verify import verify
from tests.conftest import edgeft, export_bundle, train_run
from tests.run.test_install import flip
from tests.test_full_disk import on_small_disk

PROMPT = "the red cat runs a tree"


@pytest.fixture
def base_there(bundle: Path, tmp_path: Path) -> Path:
    """The fp32 bundle's base, packed and installed without its adapter."""
    install(Path(pack(bundle, tmp_path / "base.edgeft", without_adapters=True)["file"]), tmp_path / "there")
    return tmp_path / "there"


@pytest.fixture
def colors(bundle: Path, tmp_path: Path) -> Path:
    """Its adapter, packed alone."""
    return Path(pack(bundle, tmp_path / "colors.edgeft", adapter="colors")["file"])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def repacked(file: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """A packed file with another manifest and other contents, its form flawless."""
    with tarfile.open(file) as tar:
        contents = {item.name: tar.extractfile(item).read() for item in tar}  # type: ignore[union-attr]
    first = next(iter(contents))
    manifest = json.loads(contents.pop(first))
    manifest.pop("digest", None)
    change(manifest, contents)
    stream, text = io.BytesIO(), (encode if first == "adapter.json" else encode_bundle)(manifest)
    write_member(stream, first, len(text), [text])
    for name in sorted(contents, key=lambda name: (not name.endswith(".sig"), name != "bundle.sig", name)):
        write_member(stream, name, len(contents[name]), [contents[name]])
    write_end(stream)
    changed = file.with_name(f"changed-{file.name}")
    changed.write_bytes(stream.getvalue())
    return changed


def test_equal_bundles_make_equal_files(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy", copy_function=shutil.copyfile))
    (copy / "left-over.tmp").write_text("not in the manifest")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    install(copy)  # what is prepared is this machine's own
    ways: list[dict[str, Any]] = [{}, {"adapter": "colors"}, {"without_adapters": True}]
    files = []
    for index, way in enumerate(ways):
        pack(bundle, tmp_path / f"{index}.one", **way)
        pack(copy, tmp_path / f"{index}.two", **way)
        files.append((tmp_path / f"{index}.one").read_bytes())
        assert files[-1] == (tmp_path / f"{index}.two").read_bytes()
    assert len(set(files)) == 3
    edgeft("remove", copy, "colors")
    pack(copy, tmp_path / "removed")
    assert (tmp_path / "removed").read_bytes() not in files[:2]


def test_a_bundle_is_whole_again_elsewhere(int4_bundle: Path, tmp_path: Path) -> None:
    file = Path(pack(int4_bundle, tmp_path / "kitchen.edgeft")["file"])
    result = json.loads(edgeft("install", file, "--json").stdout)
    there = tmp_path / "kitchen"
    assert result["folder"] == str(there)
    assert result["prepared"]
    assert not result["already"]
    moved = {name: data for name, data in snapshot(there).items() if not name.startswith("prepared/")}
    assert moved == snapshot(int4_bundle)
    assert verify(there)["agreement"] == 1
    answers = [load(folder, threads=1).generate(PROMPT, max_tokens=12, temperature=0).tokens
               for folder in (there, int4_bundle)]
    assert answers[0] == answers[1]
    assert install(file, there)["already"]
    assert not (tmp_path / "kitchen.previous").exists()


def test_a_newer_one_keeps_the_previous_and_a_damaged_one_changes_nothing(bundle: Path, int4_bundle: Path,
                                                                         tmp_path: Path) -> None:
    old, new = (Path(pack(folder, tmp_path / name)["file"]) for folder, name in ((bundle, "old"), (int4_bundle, "new")))
    there = tmp_path / "there"
    install(old, there)
    before = snapshot(there)
    damaged = repacked(new, lambda _, contents: contents.update({"model.onnx.data": contents["model.onnx.data"][::-1]}))
    with pytest.raises(EdgeftError, match=r"changed-new: is not as it was exported\n.*data  declared sha256") as found:
        install(damaged, there)
    assert "partial" not in str(found.value)
    damaged.write_bytes(new.read_bytes()[:-1])
    with pytest.raises(EdgeftError, match="it was cut short"):
        install(damaged, there)
    assert snapshot(there) == before
    install(new, there)
    assert read_bundle(there).manifest == read_bundle(int4_bundle).manifest
    assert snapshot(tmp_path / "there.previous") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed-new", "new", "old", "there",
                                                                  "there.previous"]


def test_base_and_adapter_apart_are_the_bundle(bundle: Path, base_there: Path, colors: Path) -> None:
    bare = load(base_there).generate(PROMPT, max_tokens=12, temperature=0).tokens
    assert read_bundle(base_there).adapters == {}
    result = json.loads(edgeft("install", colors, "--to", base_there, "--json").stdout)
    assert (result["adapter"], result["already"], result["agreement"]) == ("colors", False, 1.0)
    assert result["replayed"] > 0
    whole, there = read_bundle(bundle).manifest, read_bundle(base_there).manifest
    assert there == {**whole, "default_adapter": None}
    assert verify(base_there)["replayed"] == len(whole["parity"]["replay"])
    model = load(base_there)
    adapted = model.generate(PROMPT, adapters={"colors": 1.0}, max_tokens=12, temperature=0).tokens
    assert adapted == load(bundle).generate(PROMPT, max_tokens=12, temperature=0).tokens
    assert model.generate(PROMPT, max_tokens=12, temperature=0).tokens == bare != adapted
    assert model.graphs.prepared is not None


def test_twice_is_once_and_another_of_its_name_is_refused(base_there: Path, colors: Path) -> None:
    install_adapter(colors, base_there)
    before = snapshot(base_there)
    assert install_adapter(colors, base_there)["already"]
    assert "already" in edgeft("install", colors, "--to", base_there).stdout

    def other(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
        manifest["files"]["adapters/colors.safetensors"]["sha256"] = "0" * 64

    with pytest.raises(UsageError, match="another adapter 'colors'"):
        install_adapter(repacked(colors, other), base_there)
    assert snapshot(base_there) == before


def test_another_base_or_grid_is_refused(make_base: Any, data: Path, bundle: Path, int4_bundle: Path, colors: Path,
                                         tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", make_base(seed=5), data, "--max-steps", 2)
    other = export_bundle(tmp_path / "other", run, "--quant", "fp32", "--name", "else")
    wanted, found = (read_bundle(folder).fingerprint[:12] for folder in (other, bundle))
    before = snapshot(other)
    done = edgeft("install", colors, "--to", other, check=False)
    assert done.returncode == 1
    assert f"base fingerprint  declared {wanted}  found {found}" in done.stderr
    assert snapshot(other) == before
    copy = Path(shutil.copytree(int4_bundle, tmp_path / "int4"))
    edgeft("remove", copy, "colors")
    with pytest.raises(EdgeftError, match=r"weights  declared kind=int4 .* found kind=fp32"):
        install_adapter(colors, copy)


def _nan(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    tensors = _tensors(contents)
    next(iter(tensors.values()))[0] = np.nan
    _put(manifest, contents, tensors)


def _slot(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    _put(manifest, contents, {f"model.{name}": array for name, array in _tensors(contents).items()})


def _zeros(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    _put(manifest, contents, {name: 0 * array for name, array in _tensors(contents).items()})


def _other_answers(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    _put(manifest, contents, {name: -3 * array for name, array in _tensors(contents).items()})


def _tensors(contents: dict[str, bytes]) -> dict[str, Any]:
    path = Path(os.environ["PYTEST_TMP"]) / "adapter.safetensors"
    path.write_bytes(contents["adapters/colors.safetensors"])
    file = TensorFile(path)
    os.environ["PYTEST_HEADER"] = json.dumps(file.metadata)
    return {name: np.array(file[name]) for name in file}


def _put(manifest: dict[str, Any], contents: dict[str, bytes], tensors: dict[str, Any]) -> None:
    path = Path(os.environ["PYTEST_TMP"]) / "changed.safetensors"
    write_tensors(path, tensors, json.loads(os.environ["PYTEST_HEADER"]))
    contents["adapters/colors.safetensors"] = path.read_bytes()
    manifest["files"]["adapters/colors.safetensors"] = describe_file(path)


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
        *path, last = keys
        for key in path:
            manifest = manifest[key]
        manifest[last] = value
    return change


ROW = {"ids": [1], "tokens": [2], "adapters": {"colors": 1.0}}
BAD_ADAPTERS: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], None], str]] = {
    "NaN": (_nan, "NaN"), "a slot that is not there": (_slot, "no such slot"), "zeros": (_zeros, "change nothing"),
    "other answers": (_other_answers, "answers differ"), "format": (_set("format", value=9), "declared 9"),
    "digest": (_set("files", "adapters/colors.safetensors", "sha256", value="0" * 64), "declared sha256 000000000000"),
    "name": (_set("name", value="../../evil"), "is no adapter's name"), "none": (_set("name", value="none"), "'none'"),
    "file": (_set("adapter", "file", value="../evil"), "adapters/colors.safetensors alone"),
    "more files": (_set("files", "model.onnx.data", value={"size": 1, "sha256": ""}), "alone"),
    "base": (_set("base", value=[]), "base: must be dict"),
    "fingerprint": (_set("base", "fingerprint", value=1), "base.fingerprint: must be str"),
    "no answers": (_set("replay", value=[]), "replay: must be 1 to"),
    "too many": (_set("replay", value=[ROW] * 1000), "replay: must be 1 to"),
    "too long": (_set("replay", value=[{**ROW, "ids": [1] * 9000}]), "replay: must be 1 to"),
    "of another": (_set("replay", value=[{**ROW, "adapters": {"menu": 1.0}}]), "replay: must be 1 to"),
    "no ids": (_set("replay", value=[{**ROW, "ids": ["x"]}]), "replay: must be 1 to"),
    "token": (_set("replay", value=[{**ROW, "ids": [10**6]}]), "token"),
    "longer than the context": (_set("replay", value=[{**ROW, "ids": [1] * 900}]), "context"),
}


@pytest.mark.parametrize("kind", BAD_ADAPTERS)
def test_adapters_that_are_refused_change_nothing(kind: str, base_there: Path, colors: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))
    monkeypatch.setenv("PYTEST_HEADER", "{}")
    change, why = BAD_ADAPTERS[kind]
    before, places = snapshot(base_there), set(tmp_path.iterdir())
    with pytest.raises(EdgeftError, match=why):
        install_adapter(repacked(colors, change), base_there)
    assert snapshot(base_there) == before
    assert {path.name for path in set(tmp_path.iterdir()) - places} <= {"changed-colors.edgeft", "adapter.safetensors",
                                                                        "changed.safetensors"}


BAD_BUNDLES: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], None], str]] = {
    "outside": (_set("files", "../evil", value={"size": 0, "sha256": ""}), "path within the bundle"),
    "prepared": (_set("files", "prepared/model.onnx", value={"size": 0, "sha256": ""}), "never moved"),
    "manifest": (_set("files", "bundle.json", value={"size": 0, "sha256": ""}), "never moved"),
    "size": (_set("files", "model.onnx", "size", value=1 << 50), "cut short"),
    "no size": (_set("files", "model.onnx", value={"sha256": ""}), "a size of None"),
    "no files": (_set("files", value=[]), "object of objects"),
    "hidden": (lambda manifest, contents: contents.update({"zz": b"hidden"}), "more stands in it"),
    "format": (_set("format", value=9), "format declared 9"),
    "part": (_set("slots", value=3), "slots: must be dict"),
}


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_bundles_that_are_refused_leave_nothing(kind: str, bundle: Path, tmp_path: Path) -> None:
    change, why = BAD_BUNDLES[kind]
    inner = tmp_path / "inner"
    file = repacked(Path(pack(bundle, inner / "b.edgeft")["file"]), change)
    with pytest.raises(EdgeftError, match=why) as found:
        install(file, inner / "there")
    assert str(found.value).startswith(str(file))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.edgeft", "changed-b.edgeft", "inner"]


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 100_000, b"\xff\xfe{}", b""], ids=repr)
def test_manifests_that_are_no_json(text: bytes, tmp_path: Path) -> None:
    for name in ("bundle.json", "adapter.json"):
        stream = io.BytesIO()
        write_member(stream, name, len(text), [text])
        write_end(stream)
        (tmp_path / name).write_bytes(stream.getvalue())
        done = edgeft("install", tmp_path / name, "--to", tmp_path / "there", check=False)
        assert done.returncode == 1
        assert "JSON" in done.stderr
        assert not (tmp_path / "there").exists()


def test_words_that_are_off(bundle: Path, colors: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a bundle")
    (tmp_path / "mine").mkdir()
    whole = Path(pack(bundle, tmp_path / "whole.edgeft")["file"])
    for words, why in ((["pack", bundle, "--adapter", "color"], "Did you mean 'colors'"),
                       (["pack", bundle, "--adapter", "colors", "--without-adapters"], "choose one"),
                       (["pack", bundle, "--out", text], "already exists"), (["pack", text], "no such bundle"),
                       (["install", colors], "holds one adapter alone"),
                       (["install", whole, "--to", tmp_path / "mine"], "is there and is no bundle"),
                       (["install", colors, "--to", tmp_path / "mine"], "is no bundle")):
        done = edgeft(*words, check=False)
        assert done.returncode == 2, (words, done.stderr)
        assert why in done.stderr
    done = edgeft("install", text, check=False)
    assert (done.returncode, "no file that `edgeft pack` wrote" in done.stderr) == (1, True)
    assert not list((tmp_path / "mine").iterdir())


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    flip(copy / "model.onnx.data")
    with pytest.raises(EdgeftError, match=r"model.onnx.data  declared sha256"):
        pack(copy)
    (copy / "model.onnx.data").unlink()
    (copy / "model.onnx.data").symlink_to(bundle / "model.onnx.data")
    with pytest.raises(EdgeftError, match=r"model.onnx.data"):
        pack(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_full_disks(bundle: Path, base_there: Path, colors: Path, tmp_path: Path) -> None:
    whole = Path(pack(bundle, tmp_path / "whole.edgeft")["file"])
    for size, words in (("100k", ["pack", bundle, "--out", tmp_path / "disk" / "x"]),
                        ("200k", ["install", whole, "--to", tmp_path / "disk" / "x"]),
                        ("900k", ["install", whole, "--to", tmp_path / "disk" / "x"])):
        done = on_small_disk(size, tmp_path / "disk", *words)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert f"{words[-1]}" in done.stderr, "it names what could not be written"
        assert "No space left" in done.stderr
        assert done.stderr.strip().splitlines()[-1].endswith("then run it again."), "the disk is empty again"
    done = on_small_disk("64m", tmp_path / "disk", "install", whole, "--to", tmp_path / "disk" / "x")
    assert done.returncode == 0, done.stderr


KILLED = """
import os, signal, sys
from unittest import mock
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
from edgeft.cli import main
with mock.patch(sys.argv.pop(1), die): main(sys.argv[1:])
"""


@pytest.mark.parametrize("moment", ["run.install_adapter.ask_again", *(
    f"contract.bundle_adapters.{name}" for name in ("sync_tree", "os.replace", "write_manifest"))])
def test_killed_while_an_adapter_goes_in(moment: str, base_there: Path, colors: Path) -> None:
    """The base works on, and the same command again puts the adapter in."""
    before = read_bundle(base_there).manifest
    done = subprocess.run([sys.executable, "-c", KILLED, f"edgeft.{moment}", "install", colors, "--to", base_there],
                          check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_bundle(base_there).manifest == before
    verify(base_there)
    assert not install_adapter(colors, base_there)["already"]
    assert verify(base_there)["adapters"] == ["colors"]
    assert sorted(path.name for path in base_there.parent.iterdir()) == ["base.edgeft", "colors.edgeft", "there"]
