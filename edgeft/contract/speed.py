"""How fast a bundle will run on a device: bytes over bandwidth, operations over compute, and a price for each node."""

from __future__ import annotations

from dataclasses import dataclass

from .device import Device
from .plan import FLOAT, Wish, adapter_bytes, chunk, nodes, packed_bytes
from .shape import Shape

NODE_SECONDS = 2.3e-6  # of a node in a running graph, whatever it does (docs/decisions.md, 28)
# 10^9 operations a second and thread on products of (int8, float32): the first that `cpu.isa` names.
# Where they come from is in docs/devices.md; `limits.compute_gops` of a device file takes their place.
PER_THREAD = {"avx512_vnni": (130.0, 60.0), "avx_vnni": (65.0, 30.0), "avx2": (45.0, 30.0), "i8mm": (104.0, 26.0),
              "dotprod": (52.0, 20.0), "neon": (10.0, 8.0), "simd128": (8.0, 6.0)}
OTHERS = (8.0, 4.0)
ATTENTION = 0.25  # of the float32 products' speed is what attention over a cache reaches


@dataclass(frozen=True)
class Speed:
    """Tokens per second where the context is full; an encoder decodes nothing."""

    prefill: float
    decode: float | None


def speed(shape: Shape, wish: Wish, device: Device) -> Speed:
    """Prefill of a prompt that fills the context, and decode of the last token in it, one adapter in use."""
    products, floats = compute(device, wish.quant.kind)
    bandwidth = device.limits.bandwidth_gb_s * 1e9
    used = bool(wish.adapters)
    extra = (wish.each or adapter_bytes(shape, wish.rank)) if used else 0
    every = nodes(shape, slots=used) * NODE_SECONDS
    scores = 4 * shape.layers * shape.heads * shape.head_dim  # operations for each token that is looked back at
    slots = 2 * extra / FLOAT / floats  # a multiplication and an addition for each number
    weights = packed_bytes(shape, wish.quant)
    width = chunk(shape, wish.context)
    prompt = max(2 * shape.linear / products, weights / bandwidth / width) + slots \
        + scores * wish.context / 2 / floats + every / width
    token = (weights + extra) / bandwidth + every + scores * wish.context / (ATTENTION * floats)
    return Speed(1 / prompt, None if shape.encodes else 1 / token)


def compute(device: Device, kind: str) -> tuple[float, float]:
    """Operations a second on products in this kind of weights, and on float32 ones."""
    whole, single = next((PER_THREAD[name] for name in PER_THREAD if name in device.cpu.isa), OTHERS)
    integers, floats = whole * device.cpu.threads * 1e9, single * device.cpu.threads * 1e9
    if device.limits.compute_gops:
        integers, floats = device.limits.compute_gops * 1e9, device.limits.compute_gops * 1e9 * single / whole
    if kind in ("int4", "int8"):
        return integers, floats
    return (2 * floats if kind == "fp16" else floats), floats
