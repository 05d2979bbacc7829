"""Safetensors files, read lazily through a memory map and written with numpy alone.

The device reads strangers' files with this: the header is capped, every offset is checked before a byte of a
tensor is touched, and no pickle is ever opened. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeftError, Faults
from .files import read_json
from .opening import Refused, open_plain, parse_json
from .slots import Array

INDEX = "model.safetensors.index.json"
MAX_HEADER = 8 << 20
MAX_DIMS = 16
PICKLED = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")  # how torch.save and pickle begin
# bfloat16 has no numpy type: its bits are the upper half of a float32
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items() if name != "BF16"}


class TensorFile(Mapping[str, Array]):
    """One .safetensors file: `file[name]` reads a tensor, float kinds as float32; `metadata` is its header's.

    Raises EdgeftError for anything that is not a well-formed file.
    """

    def __init__(self, path: Path, stream: BufferedReader | None = None) -> None:
        """Map a file, or an open one: its header is read and checked, its tensors are not touched."""
        self.path = Path(path)
        if stream is not None:
            size = self._mapped(stream)
        else:
            try:
                with open_plain(self.path) as opened:
                    size = self._mapped(opened)
            except OSError as error:
                raise EdgeftError(f"{path}: cannot be read ({error.strerror})") from None
            except Refused as error:
                raise EdgeftError(f"{path}: {error}") from None
        length = struct.unpack("<Q", self._map[:8])[0] if size >= 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise EdgeftError(f"{path}: " + ("is pickled, which can run code when opened: save it again with "
                                             "safe_serialization=True" if PICKLED.match(self._map[:4]) else
                                             "is not a safetensors file, or was cut short"))
        header = parse_json(self._map[8 : 8 + length], f"{path}: has a broken safetensors header")
        try:
            self.metadata = _strings(header.pop("__metadata__", {}))
            self._entries = {name: _entry(entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EdgeftError(f"{path}: has a broken safetensors header ({error})") from None
        self._start = 8 + length
        self._check_ranges(size - self._start)

    def _mapped(self, stream: BufferedReader) -> int:
        """Map the open file itself, whatever its name means meanwhile; returns its size."""
        size = stream.seek(0, 2)
        self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return size

    def _check_ranges(self, available: int) -> None:
        position = 0
        for name, (kind, shape, begin, end) in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            wanted = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
            if begin != position or end - begin != wanted or end > available:
                raise EdgeftError(f"{self.path}: tensor {name!r} {kind}{list(shape)} claims bytes {begin} to {end}, "
                                  f"which its shape or the file ({available} bytes of data) denies")
            position = end
        if position != available:
            raise EdgeftError(f"{self.path}: {available - position} bytes belong to no tensor")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def dtype(self, name: str) -> str:
        """The stored kind, e.g. "BF16"."""
        return self._entries[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without touching the data."""
        return self._entries[name][1]

    def sha256(self) -> str:
        """Of the whole file, as it is mapped here."""
        return hashlib.sha256(self._map).hexdigest()

    def release(self) -> None:
        """Let the system take back the memory of what was read; it is read again when it is needed."""
        if hasattr(mmap, "MADV_DONTNEED") and self._map:
            self._map.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]

    def raw(self, name: str) -> memoryview:
        """The stored bytes."""
        _, _, begin, end = self._entries[name]
        return memoryview(self._map)[self._start + begin : self._start + end]

    def __getitem__(self, name: str) -> Array:
        kind, shape, _, _ = self._entries[name]
        array = np.frombuffer(self.raw(name), dtype=DTYPES[kind]).reshape(shape)
        if kind == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        if kind in ("F16", "F64"):
            return array.astype(np.float32)
        return array


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"unknown dtype {kind!r}")
    numbers = [*shape, begin, end]
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{len(shape)} dimensions; at most {MAX_DIMS} are read")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError(f"sizes must be whole numbers, found {numbers}")
    return kind, tuple(shape), begin, end


def _strings(metadata: Any) -> dict[str, str]:
    if not all(isinstance(part, str) for item in metadata.items() for part in item):
        raise ValueError("metadata must map strings to strings")
    return dict(metadata)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays as one .safetensors file, tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in tensors.items():
        size = array.size * array.itemsize
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape),
                        "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)  # the data starts aligned, so that it can be mapped
    with Path(path).open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            stream.write(np.ascontiguousarray(array).data)


class Weights(Mapping[str, Array]):
    """All tensors of a Hugging Face model folder, one file or sharded, none read until asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        files = [TensorFile(path) for path in _weight_files(self.folder)]
        self._where = {name: file for file in files for name in file}
        index = self.folder / INDEX
        if index.is_file():
            faults = Faults(f"{index}: does not agree with its files")
            where = _shards(index)
            for name in sorted(where.keys() | self._where.keys()):
                found = self._where[name].path.name if name in self._where else None
                if where.get(name) != found:
                    faults.add(repr(name), declared=where.get(name), found=found)
            faults.raise_if_any("Download the base again.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, name: str) -> Array:
        return self._where[name][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._where[name].shape(name)

    @property
    def parameters(self) -> int:
        """How many numbers the folder holds."""
        return sum(math.prod(self.shape(name)) for name in self)

    def fingerprint(self) -> str:
        """A digest over names, shapes, dtypes and bytes; how they are spread over files does not matter."""
        digest = hashlib.sha256()
        for name in sorted(self):
            file = self._where[name]
            data = hashlib.sha256(file.raw(name)).hexdigest()
            digest.update(json.dumps([name, file.dtype(name), list(file.shape(name)), data]).encode())
        return digest.hexdigest()


def _shards(index: Path) -> dict[str, str]:
    """Tensor names -> files, as a sharded folder's index holds them."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise EdgeftError(f"{index}: weight_map must map tensor names to files")
    return where


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_shards(index).values()))
        if any(Path(name).name != name for name in names):
            raise EdgeftError(f"{index}: names files outside its folder: {names}")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = [path.name for path in folder.glob("*.bin")]
    raise EdgeftError(f"{folder}: holds no model.safetensors"
                      + (f" (pickled weights are not opened: {', '.join(pickled)})" if pickled else ""))


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weights at all, or only a config to start from."""
    return any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("*.bin"))
