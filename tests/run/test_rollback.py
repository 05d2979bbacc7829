"""A version that does not answer as recorded never stays, and the one before is at hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import rollback as rolling
from edgeft.run.install import install
from edgeft.run.rollback import previous_of, rollback
from edgeft.run.verify import verify
from tests.conftest import edgeft


def made(folder: Path) -> Any:
    return read_bundle(folder).manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def place(bundle: Path, int4_bundle: Path, tmp_path: Path) -> Path:
    """A place with int4 installed over fp32."""
    to = tmp_path / "device" / "model"
    install(bundle, to)
    install(int4_bundle, to)
    return to


def wrong(bundle: Path, to: Path) -> Path:
    """A bundle whose recorded answers are not what it gives; every digest is right."""
    copy = Path(shutil.copytree(bundle, to))
    manifest = json.loads((copy / "bundle.json").read_text())
    for item in manifest["parity"]["replay"]:
        item["tokens"] = [token + 1 for token in item["tokens"]]
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return copy


def test_back_and_forward_again(place: Path, bundle: Path, int4_bundle: Path) -> None:
    assert made(place) == made(int4_bundle)
    rollback(place)
    assert (made(place), made(previous_of(place))) == (made(bundle), made(int4_bundle))
    verify(place)
    assert "the version before is back" in edgeft("rollback", place).stdout
    assert made(place) == made(int4_bundle)
    assert names(place.parent) == ["model", "model.previous"]


def test_what_answers_otherwise_is_never_installed(place: Path, bundle: Path, int4_bundle: Path,
                                                   tmp_path: Path) -> None:
    bad = wrong(bundle, tmp_path / "bad")
    with pytest.raises(EdgeftError, match="answers differ on this machine"):
        install(bad, place)
    assert (made(place), made(previous_of(place))) == (made(int4_bundle), made(bundle))
    assert names(place.parent) == ["model", "model.previous"]
    with pytest.raises(EdgeftError, match="answers differ"):
        install(bad, tmp_path / "device" / "fresh")
    assert names(place.parent) == ["model", "model.previous"]
    with pytest.raises(EdgeftError, match="answers differ"):
        install(bad)
    assert not (bad / "prepared").exists()


@pytest.mark.parametrize("older", ["none", "one", "two"])
def test_what_fails_after_the_switch_goes_back_by_itself(bundle: Path, int4_bundle: Path, tmp_path: Path, older: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "device" / "model"
    for source in {"none": [], "one": [bundle], "two": [int4_bundle, bundle]}[older]:
        install(source, to)
    new = bundle if older == "none" else int4_bundle
    before = {path: made(path) for path in (to, previous_of(to)) if path.exists()}

    def check(folder: Path) -> Any:
        if folder == to:
            raise EdgeftError("unwell in its place")
        return verify(folder)

    monkeypatch.setattr(rolling, "verify", check)
    with pytest.raises(EdgeftError, match="unwell in its place"):
        install(new, to)
    assert {path: made(path) for path in (to, previous_of(to)) if path.exists()} == before
    assert not list(to.parent.glob(".*"))
    monkeypatch.undo()
    install(new, to)
    assert made(to) == made(new)


def test_rollback_to_what_is_damaged_is_refused(place: Path, int4_bundle: Path) -> None:
    data = previous_of(place) / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    with pytest.raises(EdgeftError, match="not as it was exported"):
        rollback(place)
    assert made(place) == made(int4_bundle)


def test_rollback_needs_a_version_before(bundle: Path, tmp_path: Path) -> None:
    install(bundle, tmp_path / "model")
    with pytest.raises(UsageError, match="has no previous version"):
        rollback(tmp_path / "model")
    done = edgeft("rollback", tmp_path / "nowhere" / "model", check=False)
    assert done.returncode == 2
    assert "there is no such bundle" in done.stderr


def test_rollback_where_the_installed_one_is_gone(place: Path, bundle: Path) -> None:
    shutil.rmtree(place)
    rollback(place)
    assert made(place) == made(bundle)
