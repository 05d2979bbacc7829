"""What a bundle will hold in memory when its context is full, part by part, from sizes alone.

The runner's own habits (run/session.py, lanes.py, packing.py) in numbers: `edgeft fit` predicts with them, `export`
refuses with them, and benchmarks/fit.py holds them against what a process really takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .grid import Quant
from .shape import Shape

MIB = 1 << 20
CHUNK = 128  # tokens of a prompt in one pass, as in run/lanes.py
RUNTIME = 80 * MIB  # Python, numpy, tokenizers, onnxruntime and edgeft, their code included
CODE = 24 * MIB  # of that: what an installed bundle gives back after loading (run/pages.py)
SCORES = 16 << 20  # bytes that attention's scores may take there
FRUGAL = 180 * MIB  # beside three times the weights: below, run/model.py is sparing with mapped pages
NODE = 20_000  # bytes of a node in an open graph
LAYER_NODES, SLOT_NODES = 10, 4  # of a decoder layer, and of a slot (docs/decisions.md, 28)
TOKENIZER = 12  # bytes in memory for each of tokenizer.json
FLOAT = 4
LIVE = 3  # passes of other widths and the arena's rounding up, over what is alive at once
AROUND = 16 << 12  # bytes that come along when a page of a mapped file is first read
SCALES, MAPPED_SCALES = 3, 2  # copies of an integer grid's scales: packed, as sums of blocks, and as exported
BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Wish:
    """What is to run: a grid, tokens of prompt and answer together, and adapters that are resident."""

    quant: Quant
    context: int
    adapters: int = 0
    rank: int = 16
    each: int = 0  # bytes of one adapter in memory where that is known; else it follows from the rank
    budget_mib: int = 0  # what the process may take, where that is limited

    def but(self, **changes: object) -> Wish:
        """The same with some fields of another value."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """Bytes of each part as exported, and as it is after `edgeft install`."""

    parts: dict[str, int]
    installed: dict[str, int]

    @property
    def peak_mib(self) -> float:
        """Of a process that runs the bundle as it was exported."""
        return sum(self.parts.values()) / MIB

    @property
    def installed_mib(self) -> float:
        """The same after `edgeft install`."""
        return sum(self.installed.values()) / MIB

    def to_json(self) -> dict[str, float]:
        """MiB of each part as exported."""
        return {name: round(size / MIB, 1) for name, size in self.parts.items()}


def plan(shape: Shape, wish: Wish) -> Plan:
    """The peak of a process that runs one request over the whole context, every wished adapter resident."""
    packed, table = packed_bytes(shape, wish.quant, SCALES), table_bytes(shape, wish.quant, wish.context)
    graph = NODE * nodes(shape, slots=wish.adapters > 0)
    parts = {"weights": packed + max(table, head_in_place(shape, wish.quant)),
             "cache": FLOAT * shape.cached * wish.context,
             "adapters": wish.adapters * (wish.each or adapter_bytes(shape, wish.rank)),
             "activations": activation_bytes(shape, wish.context),
             "logits": 2 * FLOAT * shape.vocabulary if shape.head else 0,  # of one token, and a sampler's copy
             "tokenizer": TOKENIZER * shape.tokenizer,
             "runtime": RUNTIME + graph}
    return Plan(parts, _installed(shape, wish, parts, table))


def _installed(shape: Shape, wish: Wish, parts: dict[str, int], table: int) -> dict[str, int]:
    """Weights are mapped, by each graph that runs; opening reads them too, beside the embedding as exported.

    With adapters a graph for prefill and one for decode stand open beside the plain one. A page that both map counts
    twice, unless the budget is so small that the runner gives one graph's pages back before another runs.
    """
    graphs = 2 if wish.adapters else 0
    frugal = 0 < wish.budget_mib * MIB < 3 * packed_bytes(shape, wish.quant) + FRUGAL
    mapped = packed_bytes(shape, wish.quant, MAPPED_SCALES) * (1 if frugal else max(graphs, 1)) + table
    open_nodes = nodes(shape, slots=False) + graphs * nodes(shape, slots=True)
    running = {**parts, "weights": mapped, "runtime": RUNTIME - CODE + NODE * open_nodes}
    opening = {**dict.fromkeys(parts, 0), "weights": parts["weights"], "tokenizer": parts["tokenizer"],
               "runtime": RUNTIME + NODE * nodes(shape, slots=False)}
    return max(running, opening, key=lambda each: sum(each.values()))


def nodes(shape: Shape, *, slots: bool) -> int:
    """Nodes of a graph: with slots, or the plain one."""
    return LAYER_NODES * shape.layers + (SLOT_NODES * len(shape.groups) if slots else 0)


def stored_bytes(count: int, inputs: int, quant: Quant) -> tuple[int, int]:
    """(bytes of the numbers, bytes of one copy of their scales) of `count` weights with so many input features."""
    if not quant.bits:
        return count * BITS[quant.kind] // 8, 0
    blocks = -(-inputs // quant.block)
    rows = count // inputs
    return rows * blocks * quant.block * quant.bits // 8, FLOAT * rows * blocks


def packed_bytes(shape: Shape, quant: Quant, copies: int = 1) -> int:
    """All products' weights, with so many copies of their scales, and the floats that no grid touches.

    With one copy it is what a token reads; more are what onnxruntime's kernels hold.
    """
    sizes = [stored_bytes(group.in_features * sum(group.out_features), group.in_features, quant)
             for group in shape.groups]
    sizes.append(stored_bytes(shape.head, shape.hidden, quant))
    return sum(codes + copies * scales for codes, scales in sizes) + FLOAT * shape.rest


def table_bytes(shape: Shape, quant: Quant, context: int) -> int:
    """What lookups read of the embedding in place: a text's tokens lie all over it, each brings the pages around."""
    return min(sum(stored_bytes(shape.table, shape.hidden, quant)), context * AROUND)


def head_in_place(shape: Shape, quant: Quant) -> int:
    """The embedding where it is the head too, as floats: packing read all of it, and lookups keep it open."""
    return sum(stored_bytes(shape.head, shape.hidden, quant)) if shape.tied and not quant.bits else 0


def adapter_bytes(shape: Shape, rank: int) -> int:
    """One adapter of this rank on every linear layer but the head, as run/packing.py packs it."""
    total = 0
    for group in shape.groups:
        wide = rank if group.blocks > 1 else rank * len(group.modules)  # of one block; in several, A is stored again
        total += FLOAT * group.blocks * wide * (group.in_features + group.width)
    return total


def chunk(shape: Shape, context: int) -> int:
    """Tokens of one pass over a prompt, as run/lanes.py cuts it."""
    return min(CHUNK, context, max(16, SCORES // (4 * FLOAT * shape.kv_heads * context)))


def activation_bytes(shape: Shape, context: int) -> int:
    """Of one pass: the residual stream and a layer's widest tensors, for each of its tokens."""
    return LIVE * FLOAT * chunk(shape, context) * (2 * shape.widest + 4 * shape.hidden)
