"""What was trained on a grid ships on that very grid: its description, and every code, scale and zero point."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeft.contract.errors import Faults
from edgeft.contract.grid import Grid, Quant, digest

if TYPE_CHECKING:
    from .graph import Origin
    from .linears import Piece
    from .resolve import Job

SHOWN = 3  # tensors that differ, named in a message


def tensor_digests(grid: Grid, pieces: Sequence[Piece], origins: Mapping[str, Origin]) -> dict[str, str]:
    """Digests by Hugging Face tensor of a packed product; pieces of one tensor count in its own order."""
    parts: dict[str, list[tuple[int, Grid]]] = {}
    start = 0
    for piece in pieces:
        origin = origins[piece.weight]
        parts.setdefault(origin.name, []).append((origin.offset, grid.rows(start, start + piece.out)))
        start += piece.out
    return {name: digest(part for _, part in sorted(found, key=lambda item: item[0])) for name, found in parts.items()}


def check_description(job: Job, asked: str | Quant | None) -> None:
    """EdgeftError for another grid than training's, unless the user asked for that very one: then a note.

    A kind alone names another grid only where it is not training's kind. A merge always rounds anew.
    """
    grid = job.artifact.record.get("grid")
    if not grid:
        return
    trained = Quant.from_json(grid)
    chosen = isinstance(asked, Quant) or asked not in (None, trained.kind)
    if job.merge or (trained != job.quant and chosen):
        print(f"note: trained on the grid {trained}{_of(grid)}, exported {'merged, ' if job.merge else ''}as "
              f"{job.quant}: it will answer otherwise than in training", file=sys.stderr, flush=True)
    elif trained != job.quant:
        faults = Faults(f"{job.source}: was not trained on the grid of {job.device.name}")
        faults.add("grid", declared=f"{trained}{_of(grid)}", found=str(job.quant))
        faults.raise_if_any(f"Keep the one it was trained on with {flags(trained)}, train it again with --device "
                            f"{job.device.name}, or choose this one with {flags(job.quant)}.")


def check_codes(job: Job, written: Mapping[str, str]) -> None:
    """EdgeftError where what was written is not, bit for bit, what training computed with."""
    grid: dict[str, Any] = job.artifact.record.get("grid") or {}
    declared: dict[str, str] = grid.get("tensors") or {}
    if not declared or job.merge or Quant.from_json(grid) != job.quant:
        return
    shared = declared.keys() & written.keys()
    wrong = sorted(name for name in shared if declared[name] != written[name])
    if shared and not wrong:
        return
    faults = Faults(f"{job.source}: the grid of {job.base.name} is not the one it was trained on")
    for name in wrong[:SHOWN]:
        faults.add(name, declared=declared[name][:12], found=written[name][:12])
    if not shared:
        faults.add("tensors", declared=", ".join(sorted(declared)[:SHOWN]), found=", ".join(sorted(written)[:SHOWN]))
    if len(wrong) > SHOWN:
        faults.add(f"and {len(wrong) - SHOWN} more of {len(shared)} tensors")
    faults.raise_if_any("The base, or edgeft's rounding, was changed since: export with what it was trained with, or "
                        "train it again.")


def flags(quant: Quant) -> str:
    """The options of `export` and `train` that name this grid."""
    if not quant.bits:
        return f"--quant {quant.kind}"
    return (f"--quant {quant.kind} --block {quant.block}{'' if quant.symmetric else ' --asymmetric'}"
            f"{'' if quant.rounding == 'rtn' else f' --rounding {quant.rounding}'}")


def _of(grid: Mapping[str, Any]) -> str:
    return f" ({grid['device']})" if grid.get("device") else ""
