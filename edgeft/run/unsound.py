"""Logits that are no numbers: an error that says in which layer they ceased to be, never text."""

from __future__ import annotations

import re

import numpy as np

from edgeft.contract.bundle import Bundle

from .growing import GrowingLanes
from .lanes import Array, Lanes


def finite(logits: Array) -> bool:
    """Whether all logits are finite numbers; max and min pass NaN on, and take a hundredth of a step."""
    return bool(np.isfinite(logits.max()) and np.isfinite(logits.min()))


def explain(lanes: Lanes | GrowingLanes, row: int) -> str:
    """What to say of a row whose logits are not finite: the layer, by the keys and values that each one left."""
    used = " + ".join(repr(name) for name, scale in lanes.used[row].items() if scale)
    bundle = lanes.shelf.bundle
    return (f"The model's output is not a number (NaN or infinite){f' with adapter {used}' if used else ''}: "
            f"{_place(bundle, lanes, row)}. " +
            (f"Leave the adapter out, or train it again; `edgeft verify {bundle.folder}` checks the bundle." if used
             else f"`edgeft verify {bundle.folder}` checks the bundle."))


def _place(bundle: Bundle, lanes: Lanes | GrowingLanes, row: int) -> str:
    names, held = layer_names(bundle, len(lanes.graphs.layers)), lanes.keys_values(row)
    for layer in range(len(names)):
        broken = [f"{part}s" for part in ("key", "value") if not np.isfinite(held[f"{layer}.{part}"]).all()]
        if broken:
            before = f"finite up to those of {names[layer - 1]}" if layer else "the first ones there are"
            return f"it began in the {' and '.join(broken)} of {names[layer]} ({before})"
    return f"all keys and values are finite, so it began behind those of the last layer, {names[-1]}, or in the head"


def layer_names(bundle: Bundle, count: int) -> list[str]:
    """The layers' names as the base's modules have them (model.layers.3), or "layer 3" where none tells."""
    names = [f"layer {layer}" for layer in range(count)]
    for module in bundle.module_shapes[0]:
        found = re.match(r".*?\.(\d+)(?=\.)", module)
        if found and int(found[1]) < count:
            names[int(found[1])] = found[0]
    return names
