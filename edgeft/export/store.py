"""The graph's external data: tensors are made one at a time as they are written, so a base of any size streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeft.contract.bundle import GRAPH, GRAPH_DATA

ALIGN = 4096  # a page: what the runtime maps from the file needs no copy
INLINE = 1024  # bytes; smaller tensors stay in the graph's own file
PACKED = (ir.DataType.INT4, ir.DataType.UINT4)  # two numbers a byte, which numpy has no type for

Make = Callable[[], np.ndarray[Any, Any]]


@dataclass
class Pending:
    """An initializer whose numbers come later; several may share one `key`, and then one place in the file."""

    value: ir.Value
    key: str
    make: Make


class Store:
    """Collects initializers and writes them behind the graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self._pending = model, list[Pending]()

    def add(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Make, *, key: str = "") -> ir.Value:
        """A new initializer; `key` names the bytes where two initializers of different shape share them."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._pending.append(Pending(value, key or name, make))
        return value

    def fill(self, value: ir.Value, make: Make) -> None:
        """Numbers for an initializer that the graph has already."""
        self._pending.append(Pending(value, str(value.name), make))

    def write(self, folder: Path) -> None:
        """Write model.onnx and model.onnx.data."""
        places: dict[str, tuple[int, int]] = {}
        used = {value.name for node in self.model.graph for value in node.inputs if value is not None}
        with (folder / GRAPH_DATA).open("wb") as stream:
            for item in self._pending:
                if item.value.name not in used:
                    continue
                if item.key not in places:
                    array = np.ascontiguousarray(item.make())
                    if array.nbytes <= INLINE and item.value.dtype not in PACKED:
                        item.value.const_value = ir.tensor(array, name=item.value.name)
                        self.model.graph.initializers[str(item.value.name)] = item.value
                        continue
                    stream.write(b"\0" * (-stream.tell() % ALIGN))
                    places[item.key] = (stream.tell(), array.nbytes)
                    stream.write(array.data)
                    del array
                offset, length = places[item.key]
                assert item.value.dtype is not None
                item.value.const_value = ir.ExternalTensor(
                    GRAPH_DATA, offset, length, item.value.dtype, shape=ir.Shape(item.value.shape or ()),
                    name=str(item.value.name), base_dir=str(folder))
                self.model.graph.initializers[str(item.value.name)] = item.value
        ir.save(self.model, folder / GRAPH)
