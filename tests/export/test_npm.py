"""What a page takes from npm: pinned, checked, kept, and missed with one clear message."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.errors import EdgeftError
from edgeft.export.npm import FOLDER, Package, cache, packages, read_package

CONTENT = {"dist/tool.mjs": b"export default 1", "LICENSE": b"free"}


def tarball(content: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def pinned(content: bytes) -> Package:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    return Package("@some/tool", "1.0.0", "MIT", "", "https://registry.example/tool-1.0.0.tgz", integrity,
                   {"dist/tool.mjs": "tool.mjs"})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a registry that cannot be reached."""
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDER, raising=False)


def test_a_named_folder_is_enough(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = pinned(tarball(CONTENT))
    (tmp_path / "some-tool-1.0.0.tgz").write_bytes(tarball(CONTENT))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert read_package(package) == {"tool.mjs": CONTENT["dist/tool.mjs"]}


def test_what_was_fetched_is_kept(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pinned(tarball(CONTENT))
    with monkeypatch.context() as context:
        context.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(tarball(CONTENT)))
        first = read_package(package)
    assert read_package(package) == first  # from the cache: the registry is gone again
    (cache() / package.file).write_bytes(b"cut short")
    with pytest.raises(EdgeftError, match="no route to host"):
        read_package(package)


def test_neither_reachable_is_one_message(no_network: None) -> None:
    package = pinned(tarball(CONTENT))
    with pytest.raises(EdgeftError) as raised:
        read_package(package)
    for part in ("@some/tool 1.0.0", str(cache()), package.tarball, "no route to host", "npm pack", FOLDER):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", [tarball({**CONTENT, "dist/tool.mjs": b"export default 2"}), b"", b"no tarball"])
def test_other_bytes_are_refused(no_network: None, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    package = pinned(tarball(CONTENT))
    with pytest.raises(EdgeftError, match=r"is not @some/tool 1\.0\.0"):
        read_package(package)
    assert not (cache() / package.file).exists()


def test_a_file_that_is_not_in_it(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(tarball(CONTENT)))
    with pytest.raises(EdgeftError, match=r"holds no file 'dist/other\.mjs'"):
        read_package(replace(pinned(tarball(CONTENT)), files={"dist/other.mjs": "other.mjs"}))


def test_all_packages_are_pinned() -> None:
    assert len(packages()) == 3
    for package in packages():
        assert package.tarball.startswith("https://registry.npmjs.org/")
        assert package.tarball.endswith(f"-{package.version}.tgz")
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64
        assert all("/" not in name for name in package.files.values())
