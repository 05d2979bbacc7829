"""Signatures: what was signed is believed, and not one byte of anything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.bundle import describe_file, read_bundle
from edgeft.contract.bundle_adapters import remove_adapter
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.signature import policy_path
from edgeft.run import load
from edgeft.run.install import _signatures, install
from edgeft.run.rollback import rollback
from edgeft.run.signing import check_adapter, check_bundle, new_key, public_keys, sign
from edgeft.run.trust import Trust, check_adapter_arrival
from tests.conftest import edgeft

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's key."""
    path = tmp_path_factory.mktemp("keys") / "publisher"
    new_key(path)
    return path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's."""
    path = tmp_path_factory.mktemp("keys") / "stranger"
    new_key(path)
    return path


@pytest.fixture
def signed(bundle: Path, key: Path, tmp_path: Path) -> Path:
    """A signed copy of the fp32 bundle."""
    copy = Path(shutil.copytree(bundle, tmp_path / "signed"))
    sign(copy, key)
    return copy


def pub(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def check(folder: Path, key: Path) -> dict[str, str]:
    return check_bundle(read_bundle(folder), public_keys([pub(key)]))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def version(folder: Path, number: int, key: Path) -> Path:
    """The bundle under another version, signed again."""
    edit(folder, lambda manifest: manifest.update(version=number))
    sign(folder, key)
    return folder


def test_what_was_signed_is_believed_and_by_whom(signed: Path, key: Path, stranger: Path) -> None:
    found = check(signed, key)
    assert set(found) == {"", "colors"}
    assert len(set(found.values())) == 1
    with pytest.raises(EdgeftError, match="not signed by a key that is trusted") as caught:
        check(signed, stranger)
    assert str(caught.value).count("trusted") > 2, "one line for the bundle and one for its adapter"
    both = public_keys([pub(stranger), pub(key)])
    assert check_bundle(read_bundle(signed), both) == found, "any of several keys will do"


def test_the_private_key_is_its_owners_alone(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in pub(key).read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        new_key(key)


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda manifest: manifest.update(version=9),
    lambda manifest: manifest.update(prompt={"kind": "pair", "separator": "obey: "}),
    lambda manifest: manifest["files"]["model.onnx"].update(sha256="0" * 64),
    lambda manifest: manifest["files"].pop("chat_template.jinja"),
    lambda manifest: manifest["files"].update({"more.bin": {"size": 0, "sha256": "0" * 64}}),
    lambda manifest: manifest["files"]["adapters/colors.safetensors"].update(sha256="0" * 64),
    lambda manifest: manifest["files"].update({"adapters/x.bin": {"size": 0, "sha256": "0" * 64}}),
    lambda manifest: manifest["parity"]["replay"].append({"ids": [1], "tokens": [], "adapters": {}}),
    lambda manifest: manifest["generation"].update(temperature=2.0),
    lambda manifest: manifest["base"].update(fingerprint="f" * 64),
    lambda manifest: manifest.update(unheard_of=1)]


@pytest.mark.parametrize("change", CHANGES)
def test_no_part_of_the_manifest_can_be_changed(signed: Path, key: Path,
                                                change: Callable[[dict[str, Any]], Any]) -> None:
    edit(signed, change)
    with pytest.raises(EdgeftError, match="is not signed"):
        check(signed, key)


def test_every_entry_of_the_manifest_is_covered_or_an_adapters(signed: Path, key: Path) -> None:
    for name in json.loads((signed / "bundle.json").read_text()):
        if name not in ("adapters", "digest", "format", "files", "slots", "graph", "device", "context", "base"):
            copy = Path(shutil.copytree(signed, signed.with_name(f"without-{name}")))
            edit(copy, lambda manifest, name=name: manifest.pop(name))
            if name == "default_adapter":
                check(copy, key)  # `edgeft remove` may take it away
                edit(copy, lambda manifest: manifest.update(default_adapter="other"))
            with pytest.raises(EdgeftError, match="is not signed"):
                check(copy, key)


@pytest.mark.parametrize("damage", ["none", "flipped", "cut", "linked", "json", "long", "subject", "swapped"])
def test_a_signature_that_is_damaged_is_none(signed: Path, key: Path, damage: str) -> None:
    path, other = signed / "bundle.sig", signed / "adapters" / "colors.safetensors.sig"
    text = path.read_text()
    stored = json.loads(text)
    if damage == "none":
        path.unlink()
    elif damage == "linked":
        shutil.move(path, signed.with_name("elsewhere"))
        path.symlink_to(signed.with_name("elsewhere"))
    elif damage == "swapped":
        path.write_text(other.read_text())
    else:
        digit = "0" if stored["signature"][5] != "0" else "1"
        path.write_text({"flipped": text.replace(stored["signature"], stored["signature"][:5] + digit
                                                 + stored["signature"][6:]),
                         "cut": text[:-9], "json": "[]", "long": text + " " * 20_000,
                         "subject": text.replace('"subject": "bundle"', '"subject": "adapter"')}[damage])
    with pytest.raises(EdgeftError, match=r"bundle.sig"):
        check(signed, key)


def test_a_file_that_is_laid_beside_it_is_not_covered(signed: Path, key: Path) -> None:
    (signed / "special.txt").write_text("mine")
    with pytest.raises(EdgeftError, match=r"special.txt: is in no list of files"):
        check(signed, key)


def test_adapters_come_and_go_beside_a_signed_base(signed: Path, key: Path, stranger: Path, lora_run: Path) -> None:
    edgeft("add", signed, lora_run, "--name", "more")
    with pytest.raises(EdgeftError, match=r"more.safetensors.sig: there is no signature") as caught:
        check(signed, key)
    assert "bundle.sig" not in str(caught.value), "the base is as it was signed"
    sign(signed / "adapters" / "more.safetensors", stranger)
    with pytest.raises(EdgeftError, match=r"more.safetensors.sig: key declared"):
        check(signed, key)
    sign(signed / "adapters" / "more.safetensors", key)
    assert set(check(signed, key)) == {"", "colors", "more"}
    remove_adapter(signed, "colors")
    assert set(check(signed, key)) == {"", "more"}
    assert not (signed / "adapters" / "colors.safetensors.sig").exists()


def test_an_adapter_is_signed_under_its_name(signed: Path, key: Path, tmp_path: Path) -> None:
    path = signed / "adapters" / "colors.safetensors"
    keys = public_keys([pub(key)])
    assert check_adapter(path, keys)
    for name in ("polite.safetensors", "polite.safetensors.sig"):
        shutil.copyfile(path.with_name(name.replace("polite", "colors")), tmp_path / name)
    with pytest.raises(EdgeftError, match="other content"):
        check_adapter(tmp_path / "polite.safetensors", keys)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(EdgeftError, match="other content"):
        check_adapter(path, keys)


def test_the_twin_for_genai_is_signed_and_checked_like_its_adapter(signed: Path, key: Path) -> None:
    twin = signed / "adapters" / "colors.onnx_adapter"
    twin.write_bytes(b"as ONNX Runtime GenAI has it")
    edit(signed, lambda manifest: manifest["files"].update({f"adapters/{twin.name}": describe_file(twin)}))
    with pytest.raises(EdgeftError, match=r"colors.onnx_adapter.sig: there is no signature"):
        check(signed, key)
    sign(signed, key)
    assert set(check(signed, key)) == {"", "colors", "file:colors.onnx_adapter"}
    assert f"adapters/{twin.name}.sig" in _signatures(read_bundle(signed)), "install takes it along"
    twin.write_bytes(b"as somebody else would have it")
    edit(signed, lambda manifest: manifest["files"].update({f"adapters/{twin.name}": describe_file(twin)}))
    with pytest.raises(EdgeftError, match=r"colors.onnx_adapter.sig: its signature is of other content"):
        check(signed, key)
    remove_adapter(signed, "colors")
    assert set(check(signed, key)) == {""}
    assert not list((signed / "adapters").iterdir())


def test_sign_refuses_what_it_should_not_sign(signed: Path, key: Path, tmp_path: Path) -> None:
    for target, said in ((tmp_path / "none", "there is no bundle"), (signed / "tokenizer.json", "no adapter's file"),
                         (tmp_path, "is no bundle")):
        with pytest.raises(UsageError, match=said):
            sign(target, key)
    data = signed / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    with pytest.raises(EdgeftError, match="not as it was exported"):
        sign(signed, key)


def test_keys_of_the_wrong_kind_are_told(signed: Path, key: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    def pem(name: str, made: Any, password: bytes | None = None) -> Path:
        way = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        (tmp_path / name).write_bytes(made.private_bytes(serialization.Encoding.PEM,
                                                         serialization.PrivateFormat.PKCS8, way))
        return tmp_path / name

    (tmp_path / "text").write_text("hello")
    for path, said in ((pem("rsa", rsa.generate_private_key(65537, 2048)), "must be an Ed25519 key"),
                       (pem("locked", ed25519.Ed25519PrivateKey.generate(), b"word"), "without a password"),
                       (tmp_path / "text", "is no private key"), (tmp_path / "none", "cannot be read"),
                       (pub(key), "is a public key")):
        with pytest.raises(UsageError, match=said):
            sign(signed, path)
    for path, said in ((key, "is a private key"), (tmp_path / "text", "is no public key")):
        with pytest.raises(UsageError, match=said):
            public_keys([path])


# --- what a place lets in


def test_a_place_remembers_whom_it_trusts(signed: Path, bundle: Path, key: Path, stranger: Path,
                                          tmp_path: Path) -> None:
    place = tmp_path / "device" / "model"
    install(bundle, place)
    install(version(signed, 1, key), place, Trust([pub(key)], require=True))
    assert check(place, key), "the signatures came along"
    before = read_bundle(place).manifest
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    edit(other, lambda manifest: manifest.update(version=2))
    with pytest.raises(EdgeftError, match=r"bundle.sig: there is no signature"):
        install(other, place)
    sign(other, stranger)
    for trust in (Trust(), Trust([pub(stranger)])):
        with pytest.raises(EdgeftError, match="key declared"):
            install(other, place, trust)
    with pytest.raises(EdgeftError, match="there is no signature"):
        rollback(place)  # the unsigned one that was there before the policy
    assert read_bundle(place).manifest == before
    install(other, place, Trust([pub(stranger)], require=True))
    assert read_bundle(place).version == 2
    install(other, place, Trust(require=False))
    assert not policy_path(place).exists()
    edgeft("install", bundle, "--to", place, "--allow-rollback")


def test_a_policy_that_cannot_be_read_lets_nothing_in(signed: Path, key: Path, tmp_path: Path) -> None:
    install(signed, tmp_path / "place", Trust([pub(key)], require=True))
    policy_path(tmp_path / "place").write_text("{}")
    with pytest.raises(EdgeftError, match="no trust policy"):
        install(version(signed, 3, key), tmp_path / "place")


def test_a_place_with_a_policy_takes_no_adapter_that_is_not_signed(signed: Path, key: Path, lora_run: Path,
                                                                   tmp_path: Path) -> None:
    place = tmp_path / "place"
    install(signed, place, Trust([pub(key)], require=True))
    done = edgeft("add", place, lora_run, "--name", "more", check=False)
    assert done.returncode == 2
    assert "takes only what is signed" in done.stderr
    own, free = tmp_path / "own.safetensors", tmp_path / "free.safetensors"
    for path in (own, free):
        shutil.copyfile(signed / "adapters" / "colors.safetensors", path)
    sign(own, key)
    model = load(place)
    assert model.load_adapter("own", own)
    with pytest.raises(EdgeftError, match="there is no signature"):
        model.load_adapter("free", free)
    assert "free" not in model.shelf.opened
    assert load(signed).load_adapter("free", free), "without a policy it is the caller's matter"
    with pytest.raises(EdgeftError, match="there is no signature"):
        check_adapter_arrival(free, place)
    check_adapter_arrival(own, place)


def test_a_lower_version_is_refused(signed: Path, key: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    install(version(signed, 3, key), place)
    with pytest.raises(EdgeftError, match="version declared 2  installed 3"):
        install(version(signed, 2, key), place)
    install(signed, place, Trust(allow_rollback=True))
    assert read_bundle(place).version == 2
    assert rollback(place)["version"] == 3


@pytest.mark.parametrize("number", [-1, "2", 1.5, True, None])
def test_a_version_is_a_whole_number(signed: Path, number: object) -> None:
    edit(signed, lambda manifest: manifest.update(version=number))
    with pytest.raises(EdgeftError, match="version"):
        read_bundle(signed)


def test_the_commands(bundle: Path, tmp_path: Path) -> None:
    copy, key = Path(shutil.copytree(bundle, tmp_path / "copy")), tmp_path / "key"
    assert "keep it secret" in edgeft("sign", "--new-key", key).stdout
    assert "the bundle and its adapters (colors)" in edgeft("sign", copy, "--key", key).stdout
    assert "the bundle" in edgeft("verify", copy, "--key", pub(key)).stdout
    assert json.loads(edgeft("verify", copy, "--key", pub(key), "--json").stdout)["signed"].keys() == {"", "colors"}
    edit(copy, lambda manifest: manifest.update(version=5))
    done = edgeft("verify", copy, "--key", pub(key), check=False)
    assert done.returncode == 1
    assert "signature is of other content" in done.stderr
    for words in (["sign"], ["sign", copy], ["sign", copy, "--key", key, "--new-key", tmp_path / "k"],
                  ["install", copy, "--to", tmp_path / "place", "--require-signature"]):
        assert edgeft(*words, check=False).returncode == 2
    assert not (tmp_path / "place").exists()


def test_without_the_library_it_says_what_to_install(signed: Path, key: Path) -> None:
    code = ("import sys; sys.modules['cryptography'] = None\n"
            "from edgeft.cli import main\nmain(sys.argv[1:])")
    done = subprocess.run([sys.executable, "-c", code, "verify", str(signed), "--key", str(pub(key))],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'edgeft[sign]'" in done.stderr
    assert "Traceback" not in done.stderr
