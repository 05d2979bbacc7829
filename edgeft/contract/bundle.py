"""A bundle: what `export` writes and `run` reads. bundle.json names every file with its size and digest."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import EdgeftError, Faults, UsageError, did_you_mean
from .files import sha256
from .graph_file import MAX_GRAPH, Rules, check_graph
from .manifest import FORMAT, MANIFEST, NAME, REQUIRED, read_manifest, write_manifest
from .opening import Refused, digest, inside, open_inside, read_bounded
from .prompt import PromptFormat
from .tensors import TensorFile

__all__ = ["FORMAT", "MANIFEST", "NAME", "REQUIRED", "Bundle", "SlotGroup", "read_bundle", "write_manifest"]

GRAPH, GRAPH_DATA = "model.onnx", "model.onnx.data"
SCALED_GRAPH = "model.scale.onnx"  # the same over the same weights, with `scale` slots: they cost every token a little
# over the same weights again, each the fastest at one kind of step (export/variants.py)
PLAIN_GRAPH, PREFILL_GRAPH, DECODE_GRAPH = "model.plain.onnx", "model.prefill.onnx", "model.decode.onnx"
SLOTS_GRAPH = "model.slots.onnx"  # the contract's, its optional inputs required: for providers that freeze these
# of fixed shapes (export/static.py)
STATIC_PREFILL, STATIC_DECODE = "model.static-prefill.onnx", "model.static-decode.onnx"
LOGITS_TO_KEEP = "logits_to_keep"  # an optional input, as transformers has it: of how many last tokens; 0: of all
MOST_BLOCKS = 4  # for each module of a group: with more, its A would be stored too often
HEAD_FILE = "head.safetensors"
MAX_TEXT = 64 << 20  # bytes of tokenizer.json; the largest ones of today have 35 MiB
CAPPED = (".onnx", ".json", ".jinja")  # files that are read whole
# Files that a reader takes by their name: one that is there without being listed is never checked, so it is refused.
TAKEN = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json", HEAD_FILE, GRAPH_DATA)


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
    def slot_rank(self) -> int:
        """What the adapters of a request may have together where slots are of a fixed size; 0: any rank."""
        return int((self.manifest["graph"].get("static") or {}).get("rank", 0))

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

    def check_files(self, *, whole: bool, most: int = 12) -> int:
        """Compare sizes and digests with the manifest; returns bytes read. EdgeftError lists the first `most`.

        Without `whole` the weights and the adapters are only measured, so that loading stays fast: their digests are
        compared when they are opened.
        """
        faults = Faults(f"{self.folder}: is not as it was exported")
        total = sum(self._check_file(name, whole, faults) for name in self.manifest["files"])
        faults.lines += [f"{name}: is there and not in the manifest, so it cannot be checked"
                         for name in self._unlisted()]
        faults.raise_if_any("Copy it again, or export it again.", most=most)
        return total

    def _check_file(self, name: str, whole: bool, faults: Faults) -> int:
        """Note what is wrong with one file; returns bytes read."""
        entry = self.manifest["files"][name]
        try:
            limit = MAX_TEXT if name.endswith(CAPPED) else None
            with open_inside(self.folder, name, limit) as stream:
                size = stream.seek(0, 2)
                if size != entry["size"]:
                    faults.add(name, declared=f"{entry['size']} bytes", found=f"{size} bytes")
                    return 0
                if not whole and (name == GRAPH_DATA or name.startswith("adapters/")):
                    return 0
                found = digest(stream)
        except Refused as error:
            faults.add(f"{_printable(name)}: {error}")
            return 0
        if found != entry["sha256"]:
            faults.add(name, declared=f"sha256 {entry['sha256'][:12]}", found=found[:12])
        return size

    def _unlisted(self) -> list[str]:
        """Files that would be taken by their name, and are not in the manifest."""
        return [name for name in TAKEN if name not in self.manifest["files"] and (self.folder / name).exists()]

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """One of its files, whole, as it was exported: what is returned is what was checked. EdgeftError otherwise."""
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise EdgeftError(f"{self.folder}: {name} is not in its list of files.")
        try:
            with open_inside(self.folder, name, min(limit, entry["size"])) as stream:
                data = read_bounded(stream, limit)
        except Refused as error:
            raise EdgeftError(f"{self.folder}: {name} {error}.") from None
        check_digest(f"{self.folder}: {name}", data, entry)
        return data

    def graph(self, name: str) -> bytes:
        """A graph, as it was exported, after a walk over all that it refers to: only the bundle's own weights."""
        data = self.read(name, MAX_GRAPH)
        weights = self.manifest["files"].get(GRAPH_DATA)
        check_graph(name, data, Rules({GRAPH_DATA: weights["size"]} if weights else {}))
        return data

    def tensors(self, path: Path) -> TensorFile:
        """A file of tensors, mapped; one of the bundle's own must be listed and no link. No digest is compared."""
        if path.parent not in (self.folder, self.folder / "adapters"):
            return TensorFile(path)
        name = path.relative_to(self.folder).as_posix()
        if name not in self.manifest["files"]:
            raise EdgeftError(f"{self.folder}: {name} is not in its list of files.")
        try:
            with open_inside(self.folder, name) as stream:
                return TensorFile(path, stream)
        except Refused as error:
            raise EdgeftError(f"{self.folder}: {_printable(name)} {error}.") from None

    def path(self, name: str) -> Path:
        """Where one of its files lies; EdgeftError if it is a link or lies elsewhere."""
        try:
            return inside(self.folder, name)
        except Refused as error:
            raise EdgeftError(f"{self.folder}: {_printable(name)} {error}.") from None


def check_digest(what: str, data: bytes, entry: dict[str, Any]) -> None:
    """EdgeftError unless these bytes are the ones that an entry of the manifest tells of."""
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise EdgeftError(f"{what}  declared sha256 {str(entry['sha256'])[:12]}  found {found[:12]}. Copy the bundle "
                          "again, or export it again.")


def _printable(name: str) -> str:
    said = name if name.isprintable() else repr(name)
    return said if len(said) <= 100 else f"{said[:100]}..."


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest; what the files hold is checked by `check_files`."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder}: is no bundle (no {MANIFEST})." if folder.is_dir()
                         else f"{folder}: there is no such bundle.")
    return Bundle(folder, read_manifest(folder))


def check_runnable(bundle: Bundle) -> None:
    """What the runner relies on beyond the manifest's shape; EdgeftError lists all that is missing."""
    manifest = bundle.manifest
    device, graph = manifest["device"], manifest["graph"]
    faults = Faults(f"{bundle.folder}: cannot be run")
    if not {"cpu", "run", "limits"} <= device.keys():
        faults.add("device: must hold cpu.threads, run.provider, run.options and limits.budget_mib")
    if graph.get("cache") not in ("shared", "growing", "none"):
        faults.add("graph.cache", declared=graph.get("cache"), found="must be shared, growing or none")
    static = graph.get("static")
    if static is not None and (not isinstance(static, dict) or any(
            type(static.get(key)) is not int or static[key] < least
            for key, least in (("chunk", 1), ("cache", 1), ("rank", 0)))):
        faults.add("graph.static: must hold chunk, cache and rank, whole numbers")
    elif static is not None:
        for key, name in (("prefill", STATIC_PREFILL), ("decode", STATIC_DECODE)):
            if static.get(key) != name or name not in manifest["files"]:
                faults.add(f"graph.static.{key}", declared=static.get(key), found=f"must be {name}, and a listed file")
    for key in ("quant", "parity"):
        if not isinstance(manifest.get(key), dict):
            faults.add(f"{key}: must be dict, found {type(manifest.get(key)).__name__}")
    scaled = [SCALED_GRAPH] if bundle.scales else []
    for name in (GRAPH, GRAPH_DATA, "tokenizer.json", *scaled):
        if name not in manifest["files"]:
            faults.add(f"files: {name} is not listed, so it cannot be checked")
    faults.raise_if_any("Export it again.")


def describe_file(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as the manifest holds them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def check_name(name: str) -> str:
    """An adapter's name must be usable as a file name and on the command line."""
    if not NAME.fullmatch(name) or name == "none":
        raise UsageError(f"adapter name {name!r}: use letters, digits, '.', '_' and '-' (at most 64), not 'none'.")
    return name
