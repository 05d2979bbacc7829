"""Make `prepared/`: every graph saved optimized and prepacked by ONNX Runtime, all of them over one file of weights."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

import onnxruntime as ort

from edgeft.contract.bundle import Bundle, describe_file
from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import staged, write_json

from .external import Entries, heaviest_first, rewrite
from .health import check_equal
from .prepared import FORMAT, PREPARED, PREPARED_MANIFEST, PROVIDER, graph_digests, graph_names, machine
from .provider import settings_for

SMALLEST = 1024  # bytes; smaller tensors stay in the graph
LARGE, PAGE, LINE = 1 << 16, 1 << 12, 64  # large blobs begin at a page, the others at a cache line
RAW_DATA = "raw.data"


def prepare(bundle: Bundle) -> Path:
    """Prepare a bundle for this machine, beside what there is until it has proven itself; returns the folder."""
    final = bundle.folder / PREPARED
    with staged(final, replace=True) as stage:
        graphs = graph_names(bundle)
        for name in graphs:
            bundle.graph(name)  # nothing that it must not refer to; what is opened next is the same file
        _write_graphs(bundle, graphs, stage)
        for name in graphs:
            check_equal(bundle, name, stage / name)
        write_json(stage / PREPARED_MANIFEST, {
            "format": FORMAT, "machine": machine(), "graphs": graph_digests(bundle),
            "files": {path.name: describe_file(path) for path in sorted(stage.iterdir())}})
    return final


def _write_graphs(bundle: Bundle, graphs: list[str], stage: Path) -> None:
    """The graphs, and one file of weights named after its digest: no graph ever meets another preparation's weights."""
    data = stage / "weights.partial"
    with data.open("wb") as stream:
        blobs = Blobs(stream)
        made = {name: _prepare_graph(bundle.folder / name, stage / "raw", blobs) for name in graphs}
    location = f"weights-{blobs.digest[:16]}.data"
    data.rename(stage / location)
    for name, model in made.items():
        (stage / name).write_bytes(rewrite(model, lambda _, entries: {**entries, "location": location}))


def _prepare_graph(source: Path, raw: Path, blobs: Blobs) -> bytes:
    """One graph as ONNX Runtime saves it, its weights moved into `blobs`."""
    raw.mkdir()
    try:
        _save_optimized(source, raw / source.name)
        with _mapped(raw / RAW_DATA) as weights:
            heavy: dict[str, int] = {}

            def move(name: str, entries: Entries) -> Entries:
                if any(key.startswith("prepacked") for key in entries):
                    heavy[name] = int(entries["length"])
                return _moved(name, entries, weights.data, blobs)

            return heaviest_first(rewrite((raw / source.name).read_bytes(), move), heavy)
    finally:
        shutil.rmtree(raw)


def _save_optimized(source: Path, target: Path) -> None:
    settings = settings_for(PROVIDER, ort.SessionOptions())
    settings.log_severity_level = 4  # it warns that the file is for this machine only, which is its purpose
    settings.intra_op_num_threads = 1
    settings.optimized_model_filepath = str(target)
    for key, value in (("optimized_model_external_initializers_file_name", RAW_DATA),
                       ("optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST)),
                       ("save_external_prepacked_constant_initializers", "1")):
        settings.add_session_config_entry(f"session.{key}", value)
    try:
        ort.InferenceSession(str(source), settings, providers=[PROVIDER])
    except Exception as error:  # onnxruntime raises its own kinds, none of them documented
        if shutil.disk_usage(target.parent).free < LARGE:  # which it does not tell
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise EdgeftError(f"{source}: onnxruntime cannot prepare it ({str(error).splitlines()[0]}).") from None


class Blobs:
    """A file of weights that holds each run of bytes once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._places, self._whole = stream, dict[bytes, int](), hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """Of all that was written."""
        return self._whole.hexdigest()

    def put(self, blob: memoryview) -> int:
        """Where these bytes lie, now or since an equal run came."""
        key = hashlib.sha256(blob).digest()
        if key not in self._places:
            self._write(b"\0" * (-self.size % (PAGE if len(blob) >= LARGE else LINE)))
            self._places[key] = self.size
            self._write(blob)
        return self._places[key]

    def _write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._whole.update(data)
        self.size += len(data)


def _moved(name: str, entries: Entries, weights: memoryview, blobs: Blobs) -> Entries:
    """A tensor's entries after its bytes, plain and prepacked (`kind|offset;size;checksum|...`), went into `blobs`."""
    try:
        moved = {"location": RAW_DATA, "length": entries["length"],
                 "offset": str(blobs.put(_part(weights, entries["offset"], entries["length"])))}
        for key, value in entries.items():
            if key.startswith("prepacked"):
                kind, *parts = value.split("|")
                places = [part.split(";") for part in parts]
                moved[key] = "|".join([kind, *(f"{blobs.put(_part(weights, offset, size))};{size};{checksum}"
                                               for offset, size, checksum in places)])
    except (KeyError, ValueError) as error:
        raise EdgeftError(f"{name}: onnxruntime {ort.__version__} saved its weights in a form that this edgeft does "
                          f"not know ({error}). The bundle runs as it is.") from None
    return moved


def _part(weights: memoryview, offset: str, size: str) -> memoryview:
    begin, end = int(offset), int(offset) + int(size)
    if not 0 <= begin <= end <= len(weights):
        raise ValueError(f"bytes {begin} to {end} of {len(weights)}")
    return weights[begin:end]


class _mapped:
    """A file's bytes without reading them all; no bytes for a file that is not there or empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _mapped:
        self._map = None
        self.data = memoryview(b"")
        if self._path.is_file() and self._path.stat().st_size:
            with self._path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.data = memoryview(self._map)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BufferError):  # after an error its traceback holds parts of it, and the error is what counts
            self.data.release()
            if self._map is not None:
                self._map.close()
