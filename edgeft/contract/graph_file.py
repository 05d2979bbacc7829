"""What an ONNX file refers to, read before ONNX Runtime sees it: every tensor, wherever it stands, and every operator.

Field numbers are those of onnx.proto. Refused: data in any file but the one that is named, or past its end; numbers
that a tensor's shape does not explain; operators of domains that this project does not write; sparse tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import EdgeftError, Faults
from .wire import BYTES, FIXED32, VARINT, fields, signed, text, varint

MAX_GRAPH = 64 << 20  # bytes of one graph's file; weights lie beside it
DEEPEST = 32  # graphs and functions within each other; ours have 2
MOST_FAULTS = 50
DOMAINS = frozenset(("", "ai.onnx", "com.microsoft"))
PREPARED_DOMAINS = DOMAINS | {"com.microsoft.nchwc"}  # onnxruntime's own layouts, in what it optimized itself
FOREIGN = frozenset(("EPContext", "PyOp", "PythonOp"))  # of com.microsoft: they load binaries, or run Python
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
        17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # TensorProto.DataType -> bits of one
STRING = 8
KEYS = frozenset(("location", "offset", "length", "checksum"))
NUMBER = re.compile(r"[0-9]{1,18}")
PREPACKED = re.compile(r"[\w.+-]{1,200}(\|[0-9]{1,18};[0-9]{1,18};[0-9]{1,20})*")
# message -> field number -> what it holds
GRAPHS = {"model": {7: "graph", 20: "training", 25: "function"},
          "graph": {1: "node", 5: "tensor", 15: "sparse"},
          "function": {7: "node", 11: "attribute"},
          "node": {5: "attribute"},
          "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}}
OP_TYPE, DOMAIN = 4, 7  # of a node
FUNCTION_DOMAIN = 10
# of a tensor: the field -> the least bytes that one number takes in it
VALUES = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}
DIMS, DATA_TYPE, STRINGS, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 6, 8, 9, 13, 14


@dataclass(frozen=True)
class Rules:
    """What a graph may refer to: `data` maps the files that may hold tensors to their sizes."""

    data: Mapping[str, int]
    domains: frozenset[str] = DOMAINS
    prepacked: bool = False


@dataclass
class _Tensor:
    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    held: int = -1  # bytes or numbers at hand; -1: none
    entries: dict[str, str] = field(default_factory=dict)
    external: bool = False


def check_graph(name: str, data: bytes, rules: Rules) -> None:
    """EdgeftError lists all that this graph may not do, or says why it is no sound ONNX file."""
    faults = Faults(f"{name}: is no graph that can be opened")
    if len(data) > MAX_GRAPH:
        faults.add("size", declared=f"at most {MAX_GRAPH >> 20} MiB", found=f"{len(data) >> 20} MiB")
    elif data[4:8] == b"ORTM":
        faults.add("it looks like onnxruntime's own format, which is not read")
    else:
        try:
            _Walk(data, rules, faults).walk("model", 0, len(data), 0)
        except EdgeftError as error:
            faults.add(str(error))
    faults.raise_if_any("Export the bundle again.")


class _Walk:
    def __init__(self, data: bytes, rules: Rules, faults: Faults) -> None:
        self.data, self.rules, self.faults = data, rules, faults

    def walk(self, message: str, begin: int, end: int, depth: int) -> None:
        """Everything below one message."""
        if depth > DEEPEST:
            raise EdgeftError("its graphs lie too deep in each other")
        if len(self.faults.lines) >= MOST_FAULTS:
            return
        children = GRAPHS[message]
        domain = op_type = ""
        for number, kind, _, content, stop in fields(self.data, begin, end):
            child = children.get(number)
            if child is not None:
                if kind != BYTES:
                    raise EdgeftError(f"field {number} of its {message} is no message")
                self.child(child, content, stop, depth + 1)
            elif kind == BYTES and (number, message) in ((DOMAIN, "node"), (FUNCTION_DOMAIN, "function")):
                domain = text(self.data[content:stop])
            elif number == OP_TYPE and message == "node" and kind == BYTES:
                op_type = text(self.data[content:stop])
        if message in ("node", "function") and (domain not in self.rules.domains or op_type in FOREIGN):
            self.fault(f"operator {op_type!r} of domain {domain!r}: only {_listed(self.rules.domains)} are opened")

    def child(self, message: str, begin: int, end: int, depth: int) -> None:
        """One message below another."""
        if message == "tensor":
            self.tensor(begin, end)
        elif message in ("sparse", "training"):
            self.fault("it holds sparse tensors" if message == "sparse" else "it holds a graph for training")
        else:
            self.walk(message, begin, end, depth)

    def tensor(self, begin: int, end: int) -> None:
        """One tensor: its bytes are where they may be, and as many as its shape says."""
        found = self.read_tensor(begin, end)
        label = f"tensor {found.name!r}"
        count = 1
        for size in found.dims:
            count *= size
            if size < 0 or count > 1 << 50:
                self.fault(f"{label}: its shape {found.dims[:8]} is none")
                return
        if found.kind != STRING and found.kind not in BITS:
            self.fault(f"{label}: there is no data type {found.kind}")
        elif found.external or found.entries:
            self.external(label, found, count)
        elif found.held < (count if found.kind == STRING or found.held < 0 else -(-count * BITS[found.kind] // 8)):
            self.fault(f"{label}: holds fewer numbers than its shape {found.dims[:8]} says")

    def read_tensor(self, begin: int, end: int) -> _Tensor:
        """The fields that count."""
        made = _Tensor()
        held: dict[int, int] = {}
        for number, kind, _, content, stop in fields(self.data, begin, end):
            if number == DIMS:
                while content < stop and len(made.dims) < 64:
                    size, content = varint(self.data, content, stop)
                    made.dims.append(signed(size))
            elif number == DATA_TYPE and kind == VARINT:
                made.kind = varint(self.data, content, stop)[0]
            elif number == NAME and kind == BYTES:
                made.name = text(self.data[content:stop])[:200]
            elif number == LOCATION and kind == VARINT:
                made.external = varint(self.data, content, stop)[0] != 0
            elif number == EXTERNAL and kind == BYTES:
                self.entry(made.entries, content, stop)
            elif number == RAW and kind == BYTES:
                held[RAW] = stop - content
            elif number == STRINGS and kind == BYTES:
                held[STRINGS] = held.get(STRINGS, 0) + 1
            elif number in VALUES:
                size = stop - content if kind in (BYTES, FIXED32) else VALUES[number]
                held[number] = held.get(number, 0) + size // VALUES[number]
        if len(made.dims) >= 64:
            raise EdgeftError(f"tensor {made.name!r} has 64 dimensions or more")
        made.held = _bytes_held(held, made.kind)
        return made

    def entry(self, entries: dict[str, str], begin: int, end: int) -> None:
        """One key with its value of a tensor's external data."""
        pair = {number: text(self.data[content:stop]) for number, kind, _, content, stop in
                fields(self.data, begin, end) if kind == BYTES}
        if 1 not in pair or pair[1] in entries:
            raise EdgeftError("a tensor's external data has no key, or one twice")
        entries[pair[1]] = pair.get(2, "")

    def external(self, label: str, tensor: _Tensor, count: int) -> None:
        """External data: in the one file that may hold it, within its size, exactly as long as the shape says."""
        entries, location = tensor.entries, tensor.entries.get("location", "")
        if location not in self.rules.data:
            self.fault(f"{label}: its data lies in {location[:80]!r}; only {_listed(self.rules.data)} may hold it")
            return
        size, offset, length = self.rules.data[location], entries.get("offset", "0"), entries.get("length", "")
        if not tensor.external or tensor.held >= 0 or tensor.kind == STRING:
            self.fault(f"{label}: says of its data both that it is here and elsewhere")
        elif not NUMBER.fullmatch(offset) or not NUMBER.fullmatch(length):
            self.fault(f"{label}: offset {offset[:40]!r} or length {length[:40]!r} is no number")
        elif int(length) != -(-count * BITS[tensor.kind] // 8):
            self.fault(f"{label}: {length} bytes are not what its shape {tensor.dims[:8]} takes")
        elif int(offset) + int(length) > size:
            self.fault(f"{label}: bytes {offset} to {int(offset) + int(length)} of {size}")
        for key, value in entries.items():
            if key not in KEYS and not (self.rules.prepacked and self.prepacked(key, value, size)):
                self.fault(f"{label}: external data with {key[:40]!r}")

    def prepacked(self, key: str, value: str, size: int) -> bool:
        """Whether this is `prepacked_N` with `kind|offset;length;checksum|...`, all within the file."""
        if not re.fullmatch(r"prepacked_\d{1,4}", key) or not PREPACKED.fullmatch(value):
            return False
        return all(int(part.split(";")[0]) + int(part.split(";")[1]) <= size for part in value.split("|")[1:])

    def fault(self, line: str) -> None:
        """Note one."""
        if len(self.faults.lines) < MOST_FAULTS:
            self.faults.add(line)


def _bytes_held(held: dict[int, int], kind: int) -> int:
    """Of a tensor with values in its own message: how many bytes they are worth; -1 where it has none."""
    if not held:
        return -1
    if kind == STRING:
        return held.get(STRINGS, 0)
    return max(held.get(RAW, 0), max((count for number, count in held.items() if number in VALUES), default=0)
               * max(8, BITS.get(kind, 8)) // 8)


def _listed(names: Mapping[str, int] | frozenset[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"
