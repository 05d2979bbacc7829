"""Put a packed adapter beside the base that it was made for: checked, asked again, and only then in the manifest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import Bundle, read_bundle
from edgeft.contract.bundle_adapters import put_adapter
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import disk_errors, locked, scratch, sha256, sync_folder, sync_tree

from .model import Model
from .trust import ANYTHING, Trust, check_adapter_arrival, remember
from .unpack import check_adapter, opened, read_manifest, unpack
from .verify import ask_again


def install_adapter(file: Path, to: Path, trust: Trust = ANYTHING) -> dict[str, Any]:
    """Put the adapter that a file holds beside the base at `to`; its name is the one that it was packed under.

    EdgeftError for another base, another grid, a digest that differs, a signature that is asked for and not there,
    slots that the base lacks, or answers that do not come again; then nothing has changed.
    """
    started = time.perf_counter()
    with opened(file) as reader:
        manifest = read_manifest(reader)
        check_adapter(reader, manifest)
        read_bundle(to)  # before anything is locked: it may be no bundle
        with locked(to):
            bundle = read_bundle(to)
            bundle.check_files(whole=False)
            _check_base(file, manifest, bundle)
            already = _is_there(manifest, bundle)
            with scratch(to) as stage:
                unpack(reader, manifest, stage)
                _check_bytes(file, manifest, to, stage, trust)
                asked = {} if already else _check_answers(file, manifest, to, stage)
                _take_signatures(reader.beside, bundle, stage)
                if not already:
                    _take_in(manifest, bundle, stage)
            with disk_errors(to):
                remember(to, trust)
    return {"folder": str(to), "adapter": manifest["name"], "already": already, "base": bundle.fingerprint,
            "seconds": round(time.perf_counter() - started, 2), **asked}


def _check_base(file: Path, manifest: dict[str, Any], bundle: Bundle) -> None:
    faults = Faults(f"{file}: adapter {manifest['name']!r} cannot be put beside the base at {bundle.folder}")
    found = manifest["base"]["fingerprint"]
    if found != bundle.fingerprint:
        faults.add("base fingerprint", declared=bundle.fingerprint[:12], found=found[:12])
    if manifest["quant"] != bundle.manifest["quant"]:  # it was proven, and a soft prompt computed, on those weights
        faults.add("weights", declared=_grid(bundle.manifest["quant"]), found=_grid(manifest["quant"]))
    faults.raise_if_any("`edgeft add` puts its run beside this base and proves it; then pack it from that bundle.")


def _grid(quant: dict[str, Any]) -> str:
    return " ".join(f"{key}={str(value)[:12]}" for key, value in quant.items())


def _is_there(manifest: dict[str, Any], bundle: Bundle) -> bool:
    """Whether this very adapter is; UsageError if another one has its name."""
    name = manifest["name"]
    if name in bundle.adapters:
        ((file, entry),) = manifest["files"].items()
        if bundle.manifest["files"][file]["sha256"] == entry["sha256"] == sha256(bundle.folder / file):
            return True
        raise UsageError(f"{bundle.folder}: has another adapter {name!r}. Run `edgeft remove {bundle.folder} {name}` "
                         "first.")
    if not bundle.kinds:
        raise UsageError(f"{bundle.folder}: its graph takes no adapters.")
    if (bundle.folder / "adapters").is_symlink():
        raise EdgeftError(f"{bundle.folder}: its adapters folder is a link. Install the bundle again.")
    return False


def _check_bytes(file: Path, manifest: dict[str, Any], to: Path, stage: Path, trust: Trust) -> None:
    """The adapter's digest and its signature, before it is anywhere else than in the stage."""
    ((name, entry),) = manifest["files"].items()
    found = sha256(stage / name)
    if found != entry["sha256"]:
        raise EdgeftError(f"{file}: {name}  declared sha256 {entry['sha256'][:12]}  found {found[:12]}. Copy it again.")
    check_adapter_arrival(stage / name, to, trust, name=manifest["name"], digest=found)


def _check_answers(file: Path, manifest: dict[str, Any], to: Path, stage: Path) -> dict[str, Any]:
    """Its fit and its recorded answers, from the stage, too."""
    (name,) = manifest["files"]
    model = Model(to, keep_prompts=0)
    _check_rows(file, manifest["replay"], model)
    model.load_adapter(manifest["name"], stage / name)
    return ask_again(model, manifest["replay"], str(file))


def _check_rows(file: Path, rows: list[dict[str, Any]], model: Model) -> None:
    """EdgeftError for recorded answers that this base cannot give."""
    faults = Faults(f"{file}: its recorded answers are not of this base")
    longest = max(len(row["ids"]) + len(row["tokens"]) - 1 for row in rows)  # the last one is not fed
    if longest > model.context:
        faults.add("tokens", declared=f"a context of {model.context}", found=longest)
    highest = max(token for row in rows for token in (*row["ids"], *row["tokens"]))
    vocabulary = model.graphs.vocabulary or model.tokenizer.get_vocab_size()
    if highest >= vocabulary:
        faults.add("token", declared=f"a vocabulary of {vocabulary}", found=highest)
    faults.raise_if_any("Pack it again.")


def _take_signatures(names: Iterable[str], bundle: Bundle, stage: Path) -> None:
    """Before the adapter: one that stands in the manifest never lacks what was checked."""
    sync_tree(stage)
    with disk_errors(bundle.folder):
        (bundle.folder / "adapters").mkdir(exist_ok=True)
        for name in names:
            os.replace(stage / name, bundle.folder / name)
        sync_folder(bundle.folder / "adapters")


def _take_in(manifest: dict[str, Any], bundle: Bundle, stage: Path) -> None:
    """File first, manifest last: killed between the two it leaves a file that nothing names."""
    name, (file,) = manifest["name"], manifest["files"]
    whole, parity = bundle.manifest, bundle.manifest["parity"]
    made = {**whole, "files": dict(sorted({**whole["files"], **manifest["files"]}.items())),
            "adapters": {**whole["adapters"], name: manifest["adapter"]},
            "parity": {**parity, "adapters": {**parity.get("adapters", {}), name: manifest["parity"]},
                       "replay": [*parity.get("replay", []), *manifest["replay"]]}}
    put_adapter(bundle.folder, stage, file, made)


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    use = f"use it with --adapter {result['adapter']}"
    if result["already"]:
        return f"{result['folder']}: has this very adapter {result['adapter']!r} already; {use}"
    return (f"{result['folder']}: adapter {result['adapter']!r} stands beside its base {result['base'][:12]}; {use}\n"
            f"asked {result['replayed']} recorded answers again: {result['agreement']:.0%} of tokens equal")
