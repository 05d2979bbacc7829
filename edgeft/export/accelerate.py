"""What a device's provider wants beside model.onnx, and what it takes of it by its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import GRAPH, SlotGroup
from edgeft.contract.tensors import TensorFile

from .placement import check_enough, check_graph, table_for
from .resolve import Job
from .static import fixed, write_static
from .variants import write_required


def prepare_for_provider(job: Job, linears: Sequence[SlotGroup], stage: Path, manifest: dict[str, Any]) -> None:
    """Write the graphs that the device runs, and note in the manifest what they are and what its provider takes.

    Slots of a fixed size are as wide as the device file says, or as the adapter needs.
    """
    slots = linears if "lowrank" in job.slots else []
    graph, rank = job.device.graph, max(job.device.graph.rank, _rank(stage / "adapters" / f"{job.name}.safetensors"))
    if graph.static:
        manifest["graph"]["static"], graphs = write_static(stage, graph, job.context, slots, rank)
    else:
        write_required(stage, slots)
        if job.task != "text-generation":
            return
        graphs = {GRAPH: fixed(stage, 1, job.context, rank)}  # one token at the end of the context, to count its work
    table = table_for(job.device)
    if table is not None:
        reports = {file: check_graph(model, table) for file, model in graphs.items()}
        check_enough(job.device, table, reports, job.quant.kind)
        manifest["placement"] = {"provider": table.provider, "table": table.name, "sources": list(table.sources),
                                 "graphs": reports}


def _rank(adapter: Path) -> int:
    """The largest rank of an adapter's file; 0 without one."""
    if not adapter.is_file():
        return 0
    tensors = TensorFile(adapter)
    return max((tensors.shape(name)[1] for name in tensors if name.endswith(".A")), default=0)
