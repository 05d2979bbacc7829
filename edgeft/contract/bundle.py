"""A bundle: what `export` writes and `run` reads. bundle.json names every file with its size and digest."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import EdgeftError, Faults, UsageError, did_you_mean
from .files import disk_errors, locked, read_json, sha256, write_json
from .prompt import PromptFormat
from .signature import SUFFIX

FORMAT = 1
MANIFEST = "bundle.json"
GRAPH, GRAPH_DATA = "model.onnx", "model.onnx.data"
SCALED_GRAPH = "model.scale.onnx"  # the same over the same weights, with `scale` slots: they cost every token a little
# over the same weights again, each the fastest at one kind of step (export/variants.py)
PLAIN_GRAPH, PREFILL_GRAPH, DECODE_GRAPH = "model.plain.onnx", "model.prefill.onnx", "model.decode.onnx"
LOGITS_TO_KEEP = "logits_to_keep"  # an optional input, as transformers has it: of how many last tokens; 0: of all
MOST_BLOCKS = 4  # for each module of a group: with more, its A would be stored too often
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REQUIRED: dict[str, type] = {"base": dict, "graph": dict, "slots": dict, "adapters": dict, "files": dict,
                             "context": int, "device": dict}


@dataclass(frozen=True)
class SlotGroup:
    """Linear layers that read one input and share one packed pair of slot inputs.

    Inputs `{name}.A [in, k * R]` and `{name}.B [k * R, sum(out)]`: module i of k owns columns i*R to (i+1)*R of A
    and, in those rows of B, its own columns.
    """

    name: str
    modules: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]

    @cached_property
    def width(self) -> int:
        """Columns of one block, in the graphs where a row brings its own matrices."""
        common = math.gcd(*self.out_features)
        total = sum(self.out_features)
        return common if total <= MOST_BLOCKS * common * len(self.modules) else total

    @cached_property
    def blocks(self) -> int:
        """How many blocks lie side by side; each belongs to one module, unless there is only one block."""
        return sum(self.out_features) // self.width

    def to_json(self) -> dict[str, Any]:
        """As it is stored in bundle.json."""
        return {"name": self.name, "modules": list(self.modules), "in": self.in_features,
                "out": list(self.out_features)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SlotGroup:
        """Read back what `to_json` wrote."""
        return cls(value["name"], tuple(value["modules"]), int(value["in"]), tuple(value["out"]))


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the base; an adapter for another one is refused."""
        return str(self.manifest["base"]["fingerprint"])

    @property
    def version(self) -> int:
        """What its publisher counts; where one is installed, a lower one is refused. 0: not counted."""
        return int(self.manifest.get("version", 0))

    @property
    def slots(self) -> list[SlotGroup]:
        """Where adapters attach."""
        return [SlotGroup.from_json(group) for group in self.manifest["slots"].get("lowrank", [])]

    @property
    def linears(self) -> list[SlotGroup]:
        """Every linear layer of the graph, whether adapters attach there or not."""
        return [SlotGroup.from_json(group) for group in self.manifest.get("linears", [])] or self.slots

    @property
    def context(self) -> int:
        """Tokens that a soft prompt, a prompt and an answer may have together."""
        return int(self.manifest["context"])

    @property
    def scales(self) -> list[SlotGroup]:
        """Where `scale` slots are, in the scaled graph: one input `{name}.scale [rows, 1, sum(out)]` each."""
        return [SlotGroup.from_json(group) for group in self.manifest["slots"].get("scale", [])]

    @property
    def prefix_layers(self) -> list[tuple[int, int]]:
        """(kv_heads, head_dim) of each layer's cache, if prefixes may be put into it."""
        return [(int(heads), int(size)) for heads, size in self.manifest["slots"].get("prefix", [])]

    @property
    def kinds(self) -> list[str]:
        """Kinds of slots that it has."""
        return [kind for kind in ("lowrank", "scale", "prefix") if self.manifest["slots"].get(kind)]

    @property
    def adapters(self) -> dict[str, str]:
        """Adapter names -> files."""
        return {name: str(entry["file"]) for name, entry in self.manifest["adapters"].items()}

    @property
    def default_adapter(self) -> str | None:
        """Used where none is asked for."""
        return self.manifest.get("default_adapter")

    @property
    def prompt(self) -> PromptFormat:
        """How the base itself was prompted, when it was tuned as a whole."""
        return PromptFormat.from_json(self.manifest.get("prompt"))

    @cached_property
    def module_shapes(self) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        """Of every module with a slot: (in, out) of its low-rank pair, and the width of its factors."""
        pairs = {module: (group.in_features, out) for group in self.slots
                 for module, out in zip(group.modules, group.out_features, strict=True)}
        return pairs, {module: out for group in self.scales
                       for module, out in zip(group.modules, group.out_features, strict=True)}

    def digest_of(self, path: Path) -> str:
        """The declared sha256 of an adapter's file; empty for a file that is not one of the bundle's."""
        inside = path.parent == self.folder / "adapters"
        return str(self.manifest["files"].get(f"adapters/{path.name}", {}).get("sha256", "")) if inside else ""

    def adapter_file(self, name: str) -> Path:
        """The file of an adapter; UsageError with the nearest names otherwise."""
        if name not in self.adapters:
            raise UsageError(f"{self.folder}: has no adapter {name!r}.{did_you_mean(name, list(self.adapters))}"
                             f"{'' if self.adapters else ' It has none: `edgeft add` puts one in.'}")
        return self.folder / self.adapters[name]

    def check_files(self, *, whole: bool) -> int:
        """Compare sizes and digests with the manifest; returns bytes read. EdgeftError lists every difference.

        Without `whole` the weights and the adapters are only measured, so that loading stays fast: an adapter's digest
        is compared when it is opened.
        """
        faults = Faults(f"{self.folder}: is not as it was exported")
        total = 0
        for name, entry in self.manifest["files"].items():
            path = self._inside(name, faults)
            if path is None:
                continue
            size = path.stat().st_size
            if size != entry["size"]:
                faults.add(name, declared=f"{entry['size']} bytes", found=f"{size} bytes")
            elif whole or (name != GRAPH_DATA and not name.startswith("adapters/")):
                total += size
                found = sha256(path)
                if found != entry["sha256"]:
                    faults.add(name, declared=f"sha256 {entry['sha256'][:12]}", found=found[:12])
        faults.raise_if_any("Copy it again, or export it again.")
        return total

    def _inside(self, name: str, faults: Faults) -> Path | None:
        pure = PurePosixPath(name)
        path = self.folder / pure
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or _linked(self.folder, pure):
            faults.add(f"{name}: points outside the bundle")
        elif not path.is_file():
            faults.add(f"{name}: is missing")
        else:
            return path
        return None


def _linked(folder: Path, pure: PurePosixPath) -> bool:
    """Whether any part of a path below `folder` is a link."""
    return any(os.path.islink(folder.joinpath(*pure.parts[:size])) for size in range(1, len(pure.parts) + 1))


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest; what the files hold is checked by `check_files`."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder}: is no bundle (no {MANIFEST})." if folder.is_dir()
                         else f"{folder}: there is no such bundle.")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise EdgeftError(f"{folder}: bundle format declared {manifest.get('format')!r}, this edgeft reads {FORMAT}.")
    faults = Faults(f"{folder / MANIFEST}: is not a bundle's manifest")
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            faults.add(f"{key}: must be {kind.__name__}, found {type(manifest.get(key)).__name__}")
    if not faults.lines:
        _check_parts(manifest, faults)
    faults.raise_if_any("Export it again.")
    return Bundle(folder, manifest)


def check_runnable(bundle: Bundle) -> None:
    """What the runner relies on beyond the manifest's shape; EdgeftError lists all that is missing."""
    manifest = bundle.manifest
    device, graph = manifest["device"], manifest["graph"]
    faults = Faults(f"{bundle.folder}: cannot be run")
    if not isinstance(device.get("cpu"), dict) or not isinstance(device["cpu"].get("threads"), int) \
            or not isinstance(device.get("run"), dict) or not {"provider", "options"} <= device["run"].keys():
        faults.add("device: must hold cpu.threads, run.provider and run.options")
    if graph.get("cache") not in ("shared", "growing", "none"):
        faults.add("graph.cache", declared=graph.get("cache"), found="must be shared, growing or none")
    for key in ("quant", "parity"):
        if not isinstance(manifest.get(key), dict):
            faults.add(f"{key}: must be dict, found {type(manifest.get(key)).__name__}")
    scaled = [SCALED_GRAPH] if bundle.scales else []
    for name in (GRAPH, GRAPH_DATA, "tokenizer.json", *scaled):
        if name not in manifest["files"]:
            faults.add(f"files: {name} is not listed, so it cannot be checked")
    faults.raise_if_any("Export it again.")


def _check_parts(manifest: dict[str, Any], faults: Faults) -> None:
    if not isinstance(manifest["base"].get("fingerprint"), str):
        faults.add("base.fingerprint: must be str")
    if type(manifest.get("version", 0)) is not int or not 0 <= manifest.get("version", 0) < 1 << 63:
        faults.add("version", declared=manifest["version"], found="must be a whole number from 0 on")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int) \
                or not isinstance(entry.get("sha256"), str):
            faults.add(f"files.{name}: must hold size and sha256")
    try:
        for group in (*manifest["slots"].get("lowrank", []), *manifest["slots"].get("scale", [])):
            SlotGroup.from_json(group)
        for heads, size in manifest["slots"].get("prefix", []):
            if not (isinstance(heads, int) and isinstance(size, int)):
                raise ValueError("prefix must hold pairs of whole numbers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        faults.add(f"slots: {type(error).__name__}: {error}")
    for name, entry in manifest["adapters"].items():
        file = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(file, str) or file not in manifest["files"]:
            faults.add(f"adapters.{name}: its file is not in the list of files")
        elif not NAME.fullmatch(name) or file != f"adapters/{name}.safetensors":
            faults.add(f"adapters.{name}", declared=file, found=f"must be adapters/{name}.safetensors")


def describe_file(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as the manifest holds them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def check_name(name: str) -> str:
    """An adapter's name must be usable as a file name and on the command line."""
    if not NAME.fullmatch(name) or name == "none":
        raise UsageError(f"adapter name {name!r}: use letters, digits, '.', '_' and '-' (at most 64), not 'none'.")
    return name


def remove_adapter(folder: Path, name: str) -> None:
    """Take an adapter out: first out of the manifest, then off the disk."""
    read_bundle(folder)  # before anything is locked: it may be no bundle
    with locked(folder):
        _remove_adapter(folder, name)


def _remove_adapter(folder: Path, name: str) -> None:
    bundle = read_bundle(folder)
    if name not in bundle.adapters and NAME.fullmatch(name) and _delete(folder / f"adapters/{name}.safetensors"):
        return  # a killed `add` or `remove` had left the file, which is in no list
    path = bundle.adapter_file(name)
    faults = Faults(f"{folder}: is not as it was exported")
    if _linked(folder, PurePosixPath(bundle.adapters[name])):
        faults.add(f"{bundle.adapters[name]}: points outside the bundle")
    faults.raise_if_any("Export it again.")
    manifest = dict(bundle.manifest)
    file = bundle.adapters[name]
    manifest["adapters"] = {key: entry for key, entry in manifest["adapters"].items() if key != name}
    manifest["files"] = {key: entry for key, entry in manifest["files"].items() if key != file}
    parity = manifest.get("parity", {})
    manifest["parity"] = {
        **parity, "adapters": {key: entry for key, entry in parity.get("adapters", {}).items() if key != name},
        "replay": [item for item in parity.get("replay", []) if name not in item["adapters"]]}
    if manifest.get("default_adapter") == name:
        manifest["default_adapter"] = None
    with disk_errors(folder):
        write_json(bundle.folder / MANIFEST, manifest)
    _delete(path)


def _delete(path: Path) -> bool:
    """Take an adapter's file and its signature off the disk; whether there was any."""
    found = [item for item in (path, path.with_name(path.name + SUFFIX)) if os.path.lexists(item)]
    with disk_errors(path):
        for item in found:
            item.unlink()
    return bool(found)
