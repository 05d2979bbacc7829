"""Signatures travel in packed files, and what a place asks for holds for a file as for a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError
from edgeft.contract.signature import policy_path
from edgeft.run.install import install
from edgeft.run.install_adapter import install_adapter
from edgeft.run.pack import pack
from edgeft.run.signing import check_bundle, new_key, public_keys, sign
from edgeft.run.trust import Trust
from tests.conftest import edgeft
from tests.run.test_pack import repacked, snapshot

pytest.importorskip("cryptography")
ADAPTER = "adapters/colors.safetensors"
OWN, ITS = "bundle.sig", f"{ADAPTER}.sig"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The publisher's key and somebody else's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("publisher", "stranger"):
        new_key(folder / name)
    return {path.stem: path.with_suffix("") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def signed(bundle: Path, keys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed copy of the fp32 bundle."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("signed") / "bundle"))
    sign(copy, keys["publisher"])
    return copy


@pytest.fixture(scope="module")
def whole(signed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, packed."""
    return Path(pack(signed, tmp_path_factory.mktemp("packed") / "whole.edgeft")["file"])


@pytest.fixture
def asked(keys: dict[str, Path]) -> Trust:
    """A place that takes only what the publisher signed."""
    return Trust([pub(keys["publisher"])], require=True)


@pytest.fixture
def base_there(signed: Path, asked: Trust, tmp_path: Path) -> Path:
    """Such a place, the base alone in it."""
    install(Path(pack(signed, tmp_path / "base.edgeft", without_adapters=True)["file"]), tmp_path / "there", asked)
    return tmp_path / "there"


def pub(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def test_signatures_go_along_and_equal_bundles_make_equal_files(signed: Path, whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(signed, tmp_path / "copy"))
    ways: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [OWN, ITS]), ({"adapter": "colors"}, [ITS]), ({"without_adapters": True}, [OWN])]
    for index, (way, wanted) in enumerate(ways):
        assert pack(signed, tmp_path / f"{index}.one", **way)["signatures"] == wanted
        pack(copy, tmp_path / f"{index}.two", **way)
        assert (tmp_path / f"{index}.one").read_bytes() == (tmp_path / f"{index}.two").read_bytes()
    assert (tmp_path / "0.one").read_bytes() == whole.read_bytes()
    (copy / OWN).unlink()
    assert "signatures  1" in edgeft("pack", copy, "--out", tmp_path / "other").stdout
    assert (tmp_path / "other").read_bytes() != whole.read_bytes()


def test_a_signed_file_goes_where_signatures_are_required(signed: Path, whole: Path, keys: dict[str, Path],
                                                          asked: Trust, tmp_path: Path) -> None:
    there = tmp_path / "there"
    edgeft("install", whole, "--to", there, "--require-signature", "--key", pub(keys["publisher"]))
    assert policy_path(there).exists()
    moved = {name: data for name, data in snapshot(there).items() if not name.startswith("prepared/")}
    assert moved == snapshot(signed), "with every signature"
    assert set(check_bundle(read_bundle(there), public_keys(asked.keys))) == {"", "colors"}
    assert install(whole, there)["already"], "and the policy that was stored is met"


def _tampered(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    contents[ADAPTER] = contents[ADAPTER][:-1] + bytes([contents[ADAPTER][-1] ^ 1])


def _agreeing(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    """Its digest follows the change, and so its signature is stale."""
    import hashlib

    _tampered(manifest, contents)
    manifest["files"][ADAPTER]["sha256"] = hashlib.sha256(contents[ADAPTER]).hexdigest()


BAD: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], Any], str]] = {
    "a byte of the adapter": (_tampered, "declared sha256"),
    "the adapter, and its digest": (_agreeing, r"colors.safetensors.sig: its signature is of other content"),
    "another version": (lambda manifest, _: manifest.update(version=9), "bundle.sig: its signature is of other"),
    "no signature": (lambda _, contents: [contents.pop(name) for name in (OWN, ITS)], "there is no signature"),
    "none of the adapter": (lambda _, contents: contents.pop(ITS), "colors.safetensors.sig: there is no signature"),
    "none of the bundle": (lambda _, contents: contents.pop(OWN), "bundle.sig: there is no signature"),
    "no JSON": (lambda _, contents: contents.update({OWN: b"[" * 9000}), r"bundle.sig"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_as_signed_changes_nothing(kind: str, whole: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    change, why = BAD[kind]
    there = tmp_path / "there"
    done = edgeft("install", repacked(whole, change), "--to", there, "--require-signature", "--key",
                  pub(keys["publisher"]), check=False)
    assert done.returncode == 1
    assert why.replace("\\", "") in done.stderr
    assert not list(tmp_path.iterdir()), "no place, no policy, no stage"


@pytest.mark.parametrize(("words", "why"), [(["--require-signature"], "--require-signature needs --key PUBLIC"),
                                            (["--key", "nothere"], "nothere: cannot be read")])
def test_words_that_are_wrong_are_usage_errors(words: list[str], why: str, signed: Path, whole: Path,
                                               tmp_path: Path) -> None:
    for source in (signed, whole):
        done = edgeft("install", source, "--to", tmp_path / "there", *words, check=False)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_key_and_a_stored_policy(bundle: Path, signed: Path, whole: Path, keys: dict[str, Path], asked: Trust,
                                         tmp_path: Path) -> None:
    there, unsigned = tmp_path / "there", Path(pack(bundle, tmp_path / "unsigned.edgeft")["file"])
    done = edgeft("install", whole, "--to", there, "--key", pub(keys["stranger"]), check=False)
    assert (done.returncode, "key declared" in done.stderr, there.exists()) == (1, True, False)
    install(whole, there, asked)
    before = snapshot(tmp_path)
    with pytest.raises(EdgeftError, match="there is no signature"):
        install(unsigned, there)
    assert snapshot(tmp_path) == before
    install(unsigned, there, Trust(require=False))
    assert not (there / OWN).exists(), "another bundle, the same but for its signatures"


def test_a_signature_that_was_made_before_a_change(signed: Path, asked: Trust, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(signed, tmp_path / "copy"))
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**manifest, "version": 3}))
    file = Path(pack(copy, tmp_path / "stale.edgeft")["file"])
    with pytest.raises(EdgeftError, match=r"bundle.sig: its signature is of other content"):
        install(file, tmp_path / "there", asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "stale.edgeft"]


def test_an_adapter_goes_into_a_place_that_asks(signed: Path, bundle: Path, base_there: Path, keys: dict[str, Path],
                                                asked: Trust, tmp_path: Path) -> None:
    before = snapshot(base_there)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    sign(other, keys["stranger"])
    file = Path(pack(signed, tmp_path / "colors.edgeft", adapter="colors")["file"])
    bad_ones: list[tuple[Callable[[], Path], str]] = [
        (lambda: Path(pack(bundle, tmp_path / "unsigned", adapter="colors")["file"]), "there is no signature"),
        (lambda: Path(pack(other, tmp_path / "strange", adapter="colors")["file"]), "key declared"),
        (lambda: repacked(file, _agreeing), "its signature is of other content"),
        (lambda: repacked(file, _tampered), "declared sha256")]
    for make, why in bad_ones:
        done = edgeft("install", make(), "--to", base_there, check=False)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
        assert snapshot(base_there) == before
    assert not install_adapter(file, base_there)["already"]
    assert (base_there / ITS).read_bytes() == (signed / ITS).read_bytes()
    assert set(check_bundle(read_bundle(base_there), public_keys(asked.keys))) == {"", "colors"}
    assert install_adapter(file, base_there)["already"]


def test_a_key_that_is_given_for_an_adapter(signed: Path, bundle: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    """It is checked, and remembered only where all that stands there is signed."""
    bare, there = Path(pack(bundle, tmp_path / "bare", without_adapters=True)["file"]), tmp_path / "there"
    file = Path(pack(signed, tmp_path / "colors.edgeft", adapter="colors")["file"])
    unsigned = Path(pack(bundle, tmp_path / "unsigned", adapter="colors")["file"])
    install(bare, there)
    before = snapshot(there)
    words = ["install", file, "--to", there, "--key"]
    for more, why in (([pub(keys["stranger"])], "key declared"),
                      ([pub(keys["publisher"]), "--require-signature"], "bundle.sig: there is no signature")):
        done = edgeft(*words, *more, check=False)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
        assert snapshot(there) == before
        assert not policy_path(there).exists()
    assert not install_adapter(unsigned, there)["already"]
    assert not (there / ITS).exists()
    edgeft(*words, pub(keys["publisher"]))
    assert (there / ITS).exists(), "the adapter was there, its signature was not"
    assert len(read_bundle(there).manifest["parity"]["replay"]) == len(read_bundle(bundle).manifest["parity"]["replay"])
