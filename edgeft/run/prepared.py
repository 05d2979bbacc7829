"""`prepared/` in a bundle: its graphs with weights as this very machine wants them, mapped and shared by processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgeft.contract.bundle import Bundle, check_digest
from edgeft.contract.errors import EdgeftError, Faults
from edgeft.contract.events import warn
from edgeft.contract.files import read_json
from edgeft.contract.graph_file import MAX_GRAPH, PREPARED_DOMAINS, Rules, check_graph
from edgeft.contract.opening import Refused, digest, open_inside, read_bounded

FORMAT = 1
PREPARED, PREPARED_MANIFEST = "prepared", "prepared.json"
PROVIDER = "CPUExecutionProvider"  # the others prepare weights in ways of their own
OWN_PROVIDERS = (PROVIDER, "XnnpackExecutionProvider")  # they take a graph from memory
ISA = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "fphp", "sve", "sme", "i8mm", "bf16")  # what kernels are chosen by
Providers = Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder that belongs to its bundle and to this machine."""

    folder: Path
    files: dict[str, dict[str, Any]]  # name -> size and sha256

    def check_whole(self) -> int:
        """Read every file and compare its digest; returns bytes read. EdgeftError lists every difference."""
        faults = Faults(f"{self.folder}: is not as it was prepared")
        total = 0
        for name, entry in self.files.items():
            total += entry["size"]
            try:
                with open_inside(self.folder, name) as stream:
                    found = digest(stream)
            except Refused as error:
                faults.add(f"{name}: {error}")
                continue
            if found != entry["sha256"]:
                faults.add(name, declared=f"sha256 {entry['sha256'][:12]}", found=found[:12])
        faults.raise_if_any(f"Run `edgeft install {self.folder.parent}`.")
        return total


    @property
    def weights(self) -> str:
        """The file of weights that all its graphs share."""
        return next(name for name in self.files if name.endswith(".data"))

    def graph(self, name: str) -> bytes:
        """A prepared graph, checked as those of a bundle are; EdgeftError otherwise."""
        try:
            with open_inside(self.folder, name, self.files[name]["size"]) as stream:
                data = read_bounded(stream, MAX_GRAPH)
        except (Refused, KeyError) as error:
            raise EdgeftError(f"{self.folder}: {name} {error}.") from None
        check_digest(f"{self.folder}: {name}", data, self.files[name])
        check_graph(name, data, Rules({file: entry["size"] for file, entry in self.files.items()
                                       if file.endswith(".data")}, PREPARED_DOMAINS, prepacked=True))
        return data


def machine() -> dict[str, Any]:
    """What prepacked weights depend on: the processor, its instructions, and onnxruntime."""
    cpu = _cpuinfo()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    name = cpu.get("model name") or " ".join(cpu[key] for key in ("CPU implementer", "CPU part") if key in cpu)
    return {"system": platform.system(), "arch": platform.machine(), "cpu": name or platform.processor(),
            "isa": sorted(flag for flag in flags if flag.startswith(ISA)), "onnxruntime": ort.__version__}


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines; empty where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def graph_digests(bundle: Bundle) -> dict[str, str]:
    """Digests of the graphs and their weights; adapters come and go beside them."""
    return {name: str(entry["sha256"]) for name, entry in bundle.manifest["files"].items()
            if name.endswith((".onnx", ".onnx.data"))}


def graph_names(bundle: Bundle) -> list[str]:
    """The bundle's graphs."""
    return [name for name in graph_digests(bundle) if name.endswith(".onnx")]


def can_prepare(bundle: Bundle) -> bool:
    """Whether it runs on the processor itself."""
    return bool(bundle.manifest["device"]["run"]["provider"] == PROVIDER)


def read_prepared(bundle: Bundle) -> Prepared | None:
    """The prepared folder, or None without one; EdgeftError if it belongs to something else or is not whole.

    The weights' own file is only measured, so that loading stays fast; `check_whole` reads it.
    """
    folder = bundle.folder / PREPARED
    if not os.path.lexists(folder):
        return None
    faults = Faults(f"{folder}: cannot be used")
    manifest: dict[str, Any] = {}
    if folder.is_symlink():
        faults.add("it is a link")
    else:
        try:
            manifest = read_json(folder / PREPARED_MANIFEST)
        except EdgeftError as error:
            faults.add(str(error))
    if not faults.lines:
        _check_belongs(bundle, manifest, faults)
    if not faults.lines:
        _check_files(folder, manifest["files"], graph_names(bundle), faults)
    faults.raise_if_any()
    return Prepared(folder, manifest["files"])


def _check_belongs(bundle: Bundle, manifest: dict[str, Any], faults: Faults) -> None:
    if manifest.get("format") != FORMAT or not all(isinstance(manifest.get(key), dict) for key in ("files", "machine")):
        faults.add("format", declared=manifest.get("format"), found=f"this edgeft reads {FORMAT}")
        return
    for key, value in machine().items():
        declared = manifest["machine"].get(key)
        if declared != value:
            faults.add(key, declared=_short(declared, value), found=_short(value, declared))
    if manifest.get("graphs") != graph_digests(bundle):
        faults.add("it was made of other graphs")


def _short(value: Any, other: Any) -> Any:
    """Of a list only what the other one lacks."""
    if not isinstance(value, list):
        return value
    return " ".join(map(str, (item for item in value if not isinstance(other, list) or item not in other))) or "fewer"


def _check_files(folder: Path, files: dict[str, Any], graphs: list[str], faults: Faults) -> None:
    for name in graphs:
        if name not in files:
            faults.add(f"{name}: is not listed")
    if sum(name.endswith(".data") for name in files) != 1:
        faults.add("one file of weights must be listed")
    for name, entry in files.items():
        if not isinstance(entry, dict) or type(entry.get("size")) is not int \
                or not isinstance(entry.get("sha256"), str):
            faults.add(f"{name}: must hold size and sha256")
            continue
        try:
            with open_inside(folder, name) as stream:
                if stream.seek(0, 2) != entry["size"]:
                    faults.add(f"{name}: its size differs")
                elif name.endswith(".onnx") and digest(stream) != entry["sha256"]:
                    faults.add(f"{name}: its digest differs")
        except Refused as error:
            faults.add(f"{name}: {error}")


def find_prepared(bundle: Bundle) -> Prepared | None:
    """What to open instead of the graphs as exported, made again if it is stale; None, and a line on stderr, if not."""
    try:
        return read_prepared(bundle) if can_prepare(bundle) else None
    except EdgeftError as error:
        why = "; ".join(line.strip() for line in str(error).splitlines()[1:])
    folder = bundle.folder / PREPARED
    if not os.access(bundle.folder, os.W_OK):
        _say_without(folder, why, "the folder cannot be written")
        return None
    warn("fallback", f"{folder}: cannot be used ({why}); prepared again, once", folder=str(folder), to="prepared again")
    from .prepare import prepare

    try:
        bundle.check_files(whole=True)  # what is prepared is read again only as it was prepared
        prepare(bundle)
        return read_prepared(bundle)
    except EdgeftError as error:
        _say_without(folder, why, str(error).splitlines()[0])
        return None


def _say_without(folder: Path, why: str, hindrance: str) -> None:
    warn("fallback", f"{folder}: cannot be used ({why}) nor made again ({hindrance}); the weights as exported take "
         f"more memory. Run `edgeft install {folder.parent}` where it can be written.",
         folder=str(folder), to="as exported")


def open_graph(bundle: Bundle, prepared: Prepared | None, file: str, settings: ort.SessionOptions,
               providers: Providers) -> ort.InferenceSession:
    """A session over a graph of the bundle: the prepared one, or where that does not open, as it was exported."""
    if prepared is not None:
        level = settings.graph_optimization_level
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # all is done already
        try:
            return start(prepared.graph(file), prepared.folder, file, settings, providers)
        except Exception as error:  # onnxruntime raises its own kinds, none of them documented
            _say_without(prepared.folder, str(error).splitlines()[0], "it was found when it was opened")
            settings.graph_optimization_level = level
    return start(bundle.graph(file), bundle.folder, file, settings, providers)


def start(graph: bytes, folder: Path, file: str, settings: ort.SessionOptions,
          providers: Providers) -> ort.InferenceSession:
    """A session over the very bytes that were checked, with their weights in `folder`.

    Providers other than onnxruntime's own look for a model's folder by its path, so these get the file's name instead.
    """
    settings.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the bytes look like
    if any(name not in OWN_PROVIDERS for name, _ in providers):
        return ort.InferenceSession(str(folder / file), settings, providers=providers)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return ort.InferenceSession(graph, settings, providers=providers)
