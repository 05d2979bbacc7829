"""Where the tensors of an ONNX file say their bytes lie: read and changed in the file itself, all else untouched.

Only the few protobuf fields on the way to `TensorProto.external_data` are looked into (onnx.proto gives their numbers),
so the device needs no onnx package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from edgeft.contract.wire import BYTES, fields, text, unsound

Entries = dict[str, str]  # location, offset, length, prepacked_0, ...
Change = Callable[[str, Entries], Entries]  # (tensor's name, its entries) -> its new entries

CHILDREN: dict[str, dict[int, str]] = {  # message -> field number -> message
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
TENSOR_NAME, TENSOR_EXTERNAL, NODE_INPUT, MODEL_GRAPH, GRAPH_NODE = 8, 13, 1, 7, 1
DEEPEST = 32  # messages within messages; a graph of ours has 5


def rewrite(model: bytes, change: Change) -> bytes:
    """A model with the external data of every tensor as `change` gives it; EdgeftError if it is no sound file."""
    return _rewrite("model", memoryview(model), change, 0)


def heaviest_first(model: bytes, weights: Mapping[str, int]) -> bytes:
    """A model whose nodes that read `weights` (tensor -> bytes) stand first, the largest before all.

    ONNX Runtime prepares weights in this order and runs in an order of its own, so the largest one's passing copy is
    gone before the others are in memory.
    """
    parts: list[bytes] = []
    for number, kind, raw, payload in _fields(memoryview(model)):
        is_graph = (number, kind) == (MODEL_GRAPH, BYTES)
        parts.append(_message(number, _sorted_nodes(payload, weights)) if is_graph else bytes(raw))
    return b"".join(parts)


def _sorted_nodes(graph: memoryview, weights: Mapping[str, int]) -> bytes:
    nodes: list[tuple[int, bytes]] = []
    others: list[bytes] = []
    for number, kind, raw, payload in _fields(graph):
        if (number, kind) == (GRAPH_NODE, BYTES):
            reads = [text(value) for field, sort, _, value in _fields(payload) if (field, sort) == (NODE_INPUT, BYTES)]
            nodes.append((max((weights.get(name, 0) for name in reads), default=0), bytes(raw)))
        else:
            others.append(bytes(raw))
    nodes.sort(key=lambda item: -item[0])
    return b"".join([raw for _, raw in nodes] + others)


def _rewrite(message: str, data: memoryview, change: Change, depth: int) -> bytes:
    if depth > DEEPEST:
        raise unsound("its messages lie too deep")
    if message == "tensor":
        return _rewrite_tensor(data, change)
    parts: list[bytes] = []
    for number, kind, raw, payload in _fields(data):
        child = CHILDREN[message].get(number)
        parts.append(_message(number, _rewrite(child, payload, change, depth + 1)) if child and kind == BYTES
                     else bytes(raw))
    return b"".join(parts)


def _rewrite_tensor(data: memoryview, change: Change) -> bytes:
    name, entries, rest = "", Entries(), list[bytes]()
    for number, kind, raw, payload in _fields(data):
        if (number, kind) == (TENSOR_EXTERNAL, BYTES):
            pair = {field: text(value) for field, sort, _, value in _fields(payload) if sort == BYTES}
            if not pair.keys() >= {1} or pair[1] in entries:
                raise unsound("a tensor's external data has no key, or one twice")
            entries[pair[1]] = pair.get(2, "")
            continue
        if (number, kind) == (TENSOR_NAME, BYTES):
            name = text(payload)
        rest.append(bytes(raw))
    if not entries:
        return bytes(data)
    for key, value in change(name, entries).items():
        rest.append(_message(TENSOR_EXTERNAL, _message(1, key.encode()) + _message(2, value.encode())))
    return b"".join(rest)


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Fields of a message: number, wire type, the whole field, and what it holds."""
    for number, kind, start, content, end in fields(data, 0, len(data)):
        yield number, kind, data[start:end], data[content:end]


def _message(number: int, payload: bytes) -> bytes:
    return _number(number << 3 | BYTES) + _number(len(payload)) + payload


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
