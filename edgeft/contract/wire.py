"""The protobuf wire format, as far as an ONNX file needs it: fields of a message, and no field past its end."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import EdgeftError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}


def fields(data: bytes | memoryview, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Fields of the message in data[begin:end]: number, wire type, where the field, its content and its end are.

    EdgeftError for anything that is no sound message.
    """
    position = begin
    while position < end:
        start = position
        tag = data[position]
        position += 1
        if tag > 127:
            tag, position = varint(data, start, end)
        kind = tag & 7
        content = position
        if kind == BYTES:
            size, content = varint(data, position, end)
            position = content + size
        elif kind == VARINT:
            _, position = varint(data, position, end)
        elif kind in WIDTHS:
            position += WIDTHS[kind]
        else:
            raise unsound(f"there is no wire type {kind}")
        if position > end:
            raise unsound("a field ends after its message")
        if not 0 < tag >> 3 < 1 << 29:
            raise unsound(f"there is no field number {tag >> 3}")
        yield tag >> 3, kind, start, content, position


def varint(data: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """A number of at most 64 bits and where it ends."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                raise unsound("a number has more than 64 bits")
            return value, position
        shift += 7
    raise unsound("a number does not end")


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def text(data: bytes | memoryview) -> str:
    """A string field."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise unsound("a name is not text") from None


def unsound(why: str) -> EdgeftError:
    """What to raise for a broken file."""
    return EdgeftError(f"The graph is no sound ONNX file: {why}. Export the bundle again.")
