"""bundle.json: what it must hold, and the digest of itself that ends it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import EdgeftError, Faults
from .files import write_text
from .opening import Refused, open_inside, parse_json, read_bounded

FORMAT = 1
MANIFEST = "bundle.json"
MAX_MANIFEST = 4 << 20  # bytes; two thousand adapters take about 3 MiB
MAX_CONTEXT, MAX_THREADS, MAX_WIDTH, MAX_VERSION = 1 << 24, 1 << 10, 1 << 24, (1 << 63) - 1
DIGEST = "digest"
TAIL = re.compile(rb',\n  "digest": "[0-9a-f]{64}"\n}\n\Z')
ENDING = re.compile(rb'"[0-9a-f]{64}"\s*}\s*\Z')
HEX = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REQUIRED: dict[str, type] = {"base": dict, "graph": dict, "slots": dict, "adapters": dict, "files": dict,
                             "context": int, "device": dict}
# what a provider's options may not do on the word of a stranger: name a file, a folder or a library
PATH_WORDS = frozenset("path dir directory file folder lib library dll so".split())
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write bundle.json, ending in a digest of all before it: a manifest that was damaged since is refused."""
    body = json.dumps({key: value for key, value in manifest.items() if key != DIGEST}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / MANIFEST, sealed(body))


def sealed(body: str) -> str:
    """An indented JSON object with its digest as the last key."""
    before = body.removesuffix("\n}")
    return f'{before},\n  "{DIGEST}": "{hashlib.sha256(before.encode()).hexdigest()}"\n}}\n'


def read_manifest(folder: Path) -> dict[str, Any]:
    """What bundle.json holds, without its digest; EdgeftError lists all that is wrong with it."""
    path = folder / MANIFEST
    try:
        with open_inside(folder, MANIFEST, MAX_MANIFEST) as stream:
            data = read_bounded(stream, MAX_MANIFEST)
    except Refused as error:
        raise EdgeftError(f"{path}: {error}") from None
    manifest = parse_json(data, path)
    _check_seal(path, data, manifest)
    if manifest.get("format") != FORMAT or type(manifest["format"]) is not int:
        raise EdgeftError(f"{folder}: bundle format declared {manifest.get('format')!r}, this edgeft reads {FORMAT}.")
    faults = Faults(f"{path}: is not a bundle's manifest")
    faults.lines += manifest_faults(manifest)
    faults.raise_if_any("Export it again.")
    return manifest


def _check_seal(path: Path, data: bytes, manifest: dict[str, Any]) -> None:
    """The digest against what stands before it, where there is one.

    A manifest that another program wrote anew on one line has none to rely on: the digest finds damage, not authors,
    whom a signature proves.
    """
    declared = manifest.pop(DIGEST, None)
    if data.count(b"\n") <= 1 or (declared is None and not ENDING.search(data)):
        return
    end = TAIL.search(data)
    found = hashlib.sha256(data[:end.start()]).hexdigest() if end else "none at its end"
    if found != declared:
        raise EdgeftError(f"{path}: was damaged or changed since it was written: sha256 declared {str(declared)[:12]}, "
                          f"found {found[:15]}. Copy the bundle again, or export it again.")


def manifest_faults(manifest: dict[str, Any]) -> list[str]:
    """All that the readers of a bundle rely on and do not find."""
    lines = [f"{key}: must be {kind.__name__}, found {type(manifest.get(key)).__name__}"
             for key, kind in REQUIRED.items() if type(manifest.get(key)) is not kind]
    return lines or [*_file_faults(manifest), *_slot_faults(manifest), *_adapter_faults(manifest),
                     *_other_faults(manifest)]


def _file_faults(manifest: dict[str, Any]) -> list[str]:
    return [f"files.{_short(name)}: must hold size and sha256" for name, entry in manifest["files"].items()
            if not isinstance(entry, dict) or not _count(entry.get("size"), 0, 1 << 50)
            or not isinstance(entry.get("sha256"), str) or not HEX.fullmatch(entry["sha256"])]


def _slot_faults(manifest: dict[str, Any]) -> list[str]:
    slots, lines = manifest["slots"], []
    for key, groups in (("slots.lowrank", slots.get("lowrank", [])), ("slots.scale", slots.get("scale", [])),
                        ("linears", manifest.get("linears", []))):
        if not isinstance(groups, list) or not all(map(_is_group, groups)):
            lines.append(f"{key}: must be a list of groups with name, modules, in, and an out for each module")
        elif len({group["name"] for group in groups}) < len(groups):
            lines.append(f"{key}: names a group twice")
    prefix = slots.get("prefix", [])
    if not isinstance(prefix, list) or not all(isinstance(pair, list) and len(pair) == 2 and all(
            _count(size, 1, MAX_WIDTH) for size in pair) for pair in prefix):
        lines.append("slots.prefix: must hold pairs of whole numbers, a layer's heads and their size")
    return lines


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("name"), str):
        return False
    modules, out = group.get("modules"), group.get("out")
    return (isinstance(modules, list) and isinstance(out, list) and len(modules) == len(out) > 0
            and all(isinstance(name, str) for name in modules) and len(set(modules)) == len(modules)
            and _count(group.get("in"), 1, MAX_WIDTH) and all(_count(width, 1, MAX_WIDTH) for width in out))


def _adapter_faults(manifest: dict[str, Any]) -> list[str]:
    lines = []
    for name, entry in manifest["adapters"].items():
        file = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(file, str) or file not in manifest["files"]:
            lines.append(f"adapters.{_short(name)}: its file is not in the list of files")
        elif not NAME.fullmatch(name) or file != f"adapters/{name}.safetensors":
            lines.append(f"adapters.{_short(name)}  declared {file}  found must be adapters/{name}.safetensors")
    return lines


def _other_faults(manifest: dict[str, Any]) -> list[str]:
    """One line for each key that is there and is not what it must be."""
    rules: list[tuple[str, Any, Callable[[Any], bool], str]] = [
        ("base.fingerprint", manifest["base"].get("fingerprint"), _is_text, "must be str"),
        ("context", manifest["context"], lambda value: _count(value, 1, MAX_CONTEXT), f"must be 1 to {MAX_CONTEXT}"),
        ("version", manifest.get("version", 0), lambda value: _count(value, 0, MAX_VERSION),
         "must be a whole number from 0 on"),
        ("default_adapter", manifest.get("default_adapter"), _optional(_is_text), "must be a name or null"),
        ("prompt", manifest.get("prompt"), _optional(_is_dict), "must be a table or null"),
        ("generation", manifest.get("generation", {}), _is_generation,
         "must hold eos, a list of token ids, and numbers"),
        ("quant", manifest.get("quant", {"kind": ""}), lambda value: _is_dict(value) and _is_text(value.get("kind")),
         "must hold kind"),
        ("parity", manifest.get("parity", {}), _is_parity, "must hold replay, a list of ids, tokens and adapters")]
    lines = [f"{key}: {wanted}, found {_short(value)}" for key, value, fits, wanted in rules if not fits(value)]
    return [*lines, *_device_faults(manifest["device"])]


def _device_faults(device: dict[str, Any]) -> list[str]:
    cpu, run, limits = device.get("cpu"), device.get("run"), device.get("limits")
    lines = []
    if cpu is not None and not (_is_dict(cpu) and _count(cpu.get("threads"), 1, MAX_THREADS)):
        lines.append(f"device.cpu.threads: must be 1 to {MAX_THREADS}")
    if limits is not None and not (_is_dict(limits) and _count(limits.get("budget_mib"), 1, 1 << 30)):
        lines.append("device.limits.budget_mib: must be a whole number of MiB")
    if run is not None:
        if not _is_dict(run) or not _is_text(run.get("provider")) or not _is_dict(run.get("options")) \
                or not all(_is_text(value) for value in run["options"].values()):
            lines.append("device.run: must hold provider and options, texts by name")
        else:
            lines += [f"device.run.options.{_short(key)}: {_short(value)} names a file, which a bundle may not choose"
                      for key, value in run["options"].items() if names_file(key, value)]
    return lines


def names_file(key: str, value: str) -> bool:
    """Whether a provider's option is a path: some load libraries or write where they are told."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower().split("_")
    return bool(PATH_WORDS & set(words)) or "/" in value or "\\" in value or value.endswith((".so", ".dll", ".dylib"))


def _is_generation(value: Any) -> bool:
    return _is_dict(value) and isinstance(value.get("eos", []), list) and all(
        _count(token, 0, 1 << 31) for token in value.get("eos", [])) and all(
        value.get(key) is None or (type(value[key]) in (int, float) and math.isfinite(value[key])) for key in SAMPLING)


def _is_parity(value: Any) -> bool:
    if not _is_dict(value) or not isinstance(value.get("replay", []), list) \
            or not _is_dict(value.get("adapters", {})):
        return False
    return all(_is_dict(item) and all(isinstance(item.get(key), list) and all(_count(token, 0, 1 << 31)
                                                                              for token in item[key])
                                      for key in ("ids", "tokens"))
               and _is_dict(item.get("adapters")) and all(type(scale) in (int, float) and math.isfinite(scale)
                                                          for scale in item["adapters"].values())
               for item in value.get("replay", []))


def _count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _short(value: Any) -> str:
    said = value if isinstance(value, str) else repr(value)
    return said if len(said) <= 60 else f"{said[:60]}..."
