"""How fast a bundle will run on a device: bytes over bandwidth, operations over compute, and a price for each node."""

from __future__ import annotations

from dataclasses import dataclass

from .device import Device
from .plan import FLOAT, Wish, adapter_bytes, chunk, nodes, packed_bytes
from .shape import Shape

NODE_SECONDS = 2.3e-6  # of a node in a running graph, whatever it does (docs/decisions.md, 28)
ONE_TOKEN = 0.27  # of the speed of integer products over a prompt is what they reach at one token
AGAIN = 2.7  # times that attention at one token reads a cache: query heads share keys, processors' caches hold some
# 10^9 operations a second and thread on products of (int8, float32): the first that `cpu.isa` names.
# docs/devices.md says where they come from; `limits.int8_gops` of a device file takes their place.
PER_THREAD = {"avx512_vnni": (230.0, 150.0), "avx_vnni": (100.0, 50.0), "avx2": (60.0, 50.0), "i8mm": (160.0, 30.0),
              "dotprod": (80.0, 25.0), "neon": (20.0, 8.0), "simd128": (8.0, 6.0)}
OTHERS = (8.0, 4.0)
ACCELERATOR = 4.0  # int8 over float32 where the products are not the processor's


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
    weights = packed_bytes(shape, wish.quant)
    width = chunk(shape, wish.context)
    looked_back = 2 * shape.layers * shape.heads * shape.head_dim * wish.context  # half of the context on average
    prompt = max(2 * shape.linear / products, weights / bandwidth / width) \
        + (looked_back + 2 * extra / FLOAT) / floats + every / width
    if shape.encodes:
        return Speed(1 / prompt, None)
    read = max(weights / bandwidth, 2 * (shape.linear + shape.head) / (ONE_TOKEN * products)
               if wish.quant.bits else 0)
    token = read + (extra + AGAIN * FLOAT * shape.cached * wish.context) / bandwidth + every
    return Speed(1 / prompt, 1 / token)


def compute(device: Device, kind: str) -> tuple[float, float]:
    """Operations a second on products in this kind of weights, and on float32 ones."""
    integers, floats = per_thread(device.cpu.isa)
    threads = device.cpu.threads
    if device.limits.int8_gops:
        ratio = integers / floats if device.run.provider == "CPUExecutionProvider" else ACCELERATOR
        integers, floats, threads = device.limits.int8_gops, device.limits.int8_gops / ratio, 1
    chosen = integers if kind in ("int4", "int8") else 2 * floats if kind == "fp16" else floats
    return chosen * threads * 1e9, floats * threads * 1e9


def per_thread(isa: list[str]) -> tuple[float, float]:
    """10^9 operations a second and thread on products of (int8, float32)."""
    return next((PER_THREAD[name] for name in PER_THREAD if name in isa), OTHERS)
