"""What is fuzzed: each target takes bytes, and may refuse them with an EdgeftError; anything else is a finding."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import MANIFEST, Bundle, check_runnable, read_bundle
from edgeft.contract.chat import Renderer
from edgeft.contract.container import header, padding
from edgeft.contract.data import read_records
from edgeft.contract.device import read_device
from edgeft.contract.errors import EdgeftError
from edgeft.contract.graph_file import PREPARED_DOMAINS, Rules, check_graph
from edgeft.contract.heads import read_head
from edgeft.contract.manifest import write_manifest
from edgeft.contract.prompt import PromptFormat
from edgeft.contract.tensors import TensorFile
from edgeft.run.adapters import open_adapter
from edgeft.run.external import rewrite
from edgeft.run.pack import ADAPTER_MANIFEST
from edgeft.run.schema import read_schema
from edgeft.run.tokenizer import make_tokenizer, refusing
from edgeft.run.unpack import check_adapter, opened, read_manifest, unpack

CORPUS = Path(__file__).parent / "corpus"
FOLDER = Path(tempfile.gettempdir())
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
PROMPTS = ("a", "the red cat", "\u00e9\U0001f600 \x00", "a" * 200)
Target = Callable[[bytes], None]


def _file(name: str, data: bytes) -> Path:
    path = _place() / name
    path.write_bytes(data)
    return path


@functools.cache
def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="edgeft-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def manifest(data: bytes) -> None:
    """bundle.json, and what the runner asks of it."""
    path = _place() / "bundle"
    path.mkdir(exist_ok=True)
    (path / "bundle.json").write_bytes(data)
    bundle = read_bundle(path)
    _ = (
        bundle.slots,
        bundle.scales,
        bundle.linears,
        bundle.prefix_layers,
        bundle.kinds,
        bundle.adapters,
        bundle.module_shapes,
        bundle.context,
        bundle.default_adapter,
        [group.width for group in bundle.slots],
    )
    with contextlib.suppress(EdgeftError):
        _ = bundle.prompt
    with contextlib.suppress(EdgeftError):
        check_runnable(bundle)
    with contextlib.suppress(EdgeftError):
        bundle.check_files(whole=True)


@functools.cache
def _small_bundle() -> Bundle:
    group = {"name": "q", "modules": ["q"], "in": 4, "out": [6]}
    made = {
        "format": 1,
        "base": {"fingerprint": "f"},
        "graph": {},
        "context": 16,
        "device": {},
        "adapters": {},
        "files": {},
        "slots": {"lowrank": [group], "scale": [group], "prefix": [[2, 3]]},
    }
    folder = _place() / "small"
    folder.mkdir()
    write_manifest(folder, made)
    return read_bundle(folder)


def adapter(data: bytes) -> None:
    """An adapter's file against a bundle, its head and its prompt too."""
    path = _file("adapter.safetensors", data)
    file = TensorFile(path)
    for name in file:
        _ = file[name]
    with contextlib.suppress(EdgeftError):
        read_head(file, 4)
    opened = open_adapter("a", path, _small_bundle())
    with contextlib.suppress(EdgeftError):
        opened.checked.result()
    _ = (opened.rank, opened.scaled, opened.soft, opened.length, opened.prompt)


def device(data: bytes) -> None:
    """A device file."""
    read_device(_file("device.toml", data)).quants()


def lines(data: bytes) -> None:
    """Lines of data."""
    for record in read_records(_file("data.jsonl", data)):
        json.dumps(record)


def graph(data: bytes) -> None:
    """The walk over an ONNX file, and the change of its references."""
    with contextlib.suppress(EdgeftError):
        check_graph("model.onnx", data, Rules({"model.onnx.data": 64}))
    check_graph("model.onnx", data, Rules({"model.onnx.data": 64}, PREPARED_DOMAINS, prepacked=True))
    rewrite(data, lambda _, entries: {**entries, "location": "other"})


def tokenizer(data: bytes) -> None:
    """A tokenizer, made and used."""
    made = make_tokenizer(data, "tokenizer.json")
    for prompt in PROMPTS:
        with refusing("cannot be used"):
            ids = made.encode(prompt).ids
            made.decode(ids)
        assert len(ids) <= 200 * len(prompt) + 200, "a text grew beyond measure"


@functools.cache
def _inside() -> Any:
    """The worker's own rendering, in this process: coverage is not seen across processes."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])


_COUNT = iter(range(1 << 62))


def template(data: bytes) -> None:
    """A chat template in its process, within a quarter of a second."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(Exception):
        _inside().parse(text)
    if next(_COUNT) % 20:  # a process takes 100 ms: most inputs are only read
        return
    renderer = Renderer(text, {"bos_token": "<s>"}, seconds=0.25)
    try:
        renderer.ready()
        said = renderer(MESSAGES, True)
        assert isinstance(said, str)
    finally:
        renderer._end()


def schema(data: bytes) -> None:
    """A JSON schema."""
    read_schema(data.decode("utf-8", "replace"), "schema")


def prompt(data: bytes) -> None:
    """What an adapter's header says of prompts."""
    first, _, rest = data.partition(b"\n")
    PromptFormat.from_metadata(
        {"prompt": first.decode("utf-8", "replace"), "templates": rest.decode("utf-8", "surrogateescape")}
    ).apply("hello", None, None)


def packed(data: bytes) -> None:
    """A packed file: its manifest, a zero byte, and what stands behind it; the header that must be first is made here,
    for its checksum would keep all that is fuzzed out."""
    first, _, rest = data.partition(b"\0")
    adapter, stage = first[:1] == b"A", _place() / "stage"
    name = ADAPTER_MANIFEST if adapter else MANIFEST
    file = _file("packed.edgeft", header(name, len(first) - 1) + first[1:] + padding(len(first) - 1) + rest)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    with opened(file) as reader:
        said = read_manifest(reader)
        unpack(reader, said, stage)
        there = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
        assert there == {name, *reader.beside, *said["files"]}, "something else was unpacked than what was named"
        if adapter:
            check_adapter(reader, said)


TARGETS: dict[str, Target] = {
    "manifest": manifest,
    "adapter": adapter,
    "device": device,
    "lines": lines,
    "graph": graph,
    "tokenizer": tokenizer,
    "template": template,
    "schema": schema,
    "prompt": prompt,
    "packed": packed,
}


def run(name: str, data: bytes) -> bool:
    """Whether these bytes were taken; EdgeftError means refused, and everything else comes through."""
    try:
        TARGETS[name](data)
    except EdgeftError:
        return False
    return True


def seeds(name: str) -> Iterator[bytes]:
    """The good files of a target's corpus."""
    yield from (path.read_bytes() for path in sorted((CORPUS / name).glob("*")) if path.is_file())


def found(name: str) -> Iterator[bytes]:
    """What a fuzzer found that reaches more of the code than the good files do."""
    yield from (path.read_bytes() for path in sorted((CORPUS / name / "found").glob("*")))


def safetensors(header: bytes, data: bytes) -> bytes:
    """A file of tensors of any header."""
    return struct.pack("<Q", len(header)) + header + data
