"""What an export is about: everything that can be refused is refused here, before any work is done."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.contract.artifact import Artifact, read_artifact
from edgeft.contract.bundle import check_name
from edgeft.contract.device import Device
from edgeft.contract.errors import CannotLower, Faults, UsageError
from edgeft.contract.grid import Quant
from edgeft.contract.heads import Head
from edgeft.contract.peft_types import PEFT_TYPES
from edgeft.contract.tasks import TaskOptions, choose_task

from .adapters import Learned, check_modules, finite_tensors, understand
from .base import Base, open_base
from .compress import Compression, base_name, compress
from .foreign import check, import_peft
from .heads import own_head, split_head
from .placement import is_standard

if TYPE_CHECKING:
    from edgeft.plugins import Host


@dataclass
class Job:
    """One export, its inputs resolved."""

    base: Base
    learned: Learned | None
    artifact: Artifact
    device: Device
    quant: Quant
    merge: bool
    name: str  # of the adapter beside the base; empty if there is none
    fingerprint: str  # of the base that the bundle holds
    context: int
    head: Head | None = None  # the classification head that the artifact brings
    compression: Compression | None = None  # of what was given, where `artifact` is a LoRA made of it
    scale: float = 1.0  # how much of a merged change is folded in
    graph: Path | None = None  # an ONNX file of the base that others made

    @property
    def source(self) -> Path:
        """The folder that was given."""
        return (self.compression.original if self.compression else self.artifact).folder.resolve()

    @property
    def beside(self) -> bool:
        """Whether an adapter stands beside the base."""
        return self.learned is not None and not self.merge

    @property
    def slots(self) -> list[str]:
        """Kinds of slots that the bundle gets: a base with a change merged in is no base for other adapters."""
        kinds = [] if self.merge else list(self.device.graph.slots)
        return [kind for kind in kinds if kind != "scale" or not self.device.graph.static]

    @property
    def standard(self) -> bool:
        """Whether its graphs are to be of standard operators; they compute integer weights on exact activations."""
        return is_standard(self.device)

    @property
    def own_head(self) -> Head | None:
        """The head that the bundle has without an adapter."""
        return own_head(self.base) if self.beside else self.head

    @property
    def task(self) -> str:
        """What the bundle does without an adapter."""
        return "text-classification" if self.own_head else self.base.task


def resolve(source: Path, device: Device, host: Host, *, merge: bool = False, base: str | None = None,
            quant: str | Quant | None = None, name: str | None = None, task: str | None = None, rank: int = 0,
            scale: float = 1.0, graph: Path | None = None) -> Job:
    """Everything that can be refused before any work is done; a `rank` compresses what was learned to an adapter."""
    artifact = read_artifact(source)
    stored = quant if isinstance(quant, Quant) else device.graph.grid(quant)
    if stored.kind not in device.quants():
        raise UsageError(f"--quant {stored.kind}: {device.name} does not compute in it. It runs "
                         f"{', '.join(device.quants())}.")
    learned = None if rank else _understood(artifact, host)
    opened = open_base(base_name(artifact, base) if rank else _base_name(artifact, base))
    if graph is not None and opened.encodes:
        raise UsageError(f"--graph {graph}: is for decoders, and {opened.name} is an encoder "
                         f"({opened.config.model_type}).")
    if (rank or artifact.kind != "model") and artifact.base_fingerprint not in ("", opened.fingerprint):
        changed = not base or base == artifact.base
        faults = Faults(f"{source}: its base {opened.name} was changed on disk since" if changed else
                        f"{source}: was not trained on {opened.name}")
        faults.add("base fingerprint", declared=artifact.base_fingerprint[:12], found=opened.fingerprint[:12])
        faults.raise_if_any("Put back the base that it was trained on, or train again." if changed else
                            "Name its own base with --base; if that was changed since, train again.")
    if device.graph.static and opened.task != "text-generation":
        raise UsageError(f"{source}: {opened.name} is for {opened.task}, and graphs of fixed shapes, which "
                         f"{device.name} wants, are made of decoders that generate text.")
    compression = compress(artifact, opened, host, rank) if rank else None
    if compression:
        artifact = compression.artifact
        learned = understand(artifact, host)
    elif learned is None and artifact.kind == "peft":
        learned = import_peft(artifact, opened)
    if learned is not None and isinstance(learned.options, TaskOptions):
        artifact, options = choose_task(artifact, learned.options, task)
        learned = replace(learned, artifact=artifact, options=options)
    elif task:
        raise UsageError(f"--task {task}: {source} learned one thing for all tasks. Leave it out here; `edgeft run "
                         "--task` chooses among prompt templates.")
    learned, head = split_head(artifact, learned, opened)
    if learned is not None:
        shapes = {name.rpartition(".")[0]: () for name in opened.tied}
        check_modules(learned, list(opened.weights), shapes)
    chosen = check_name(name or _default_name(source)) if learned is not None and not merge else ""
    if learned is not None and not merge and not device.graph.slots:
        raise UsageError(f"{device.name}: its graphs take no adapters beside the base. Export with --merge.")
    fingerprint = opened.fingerprint
    if learned is not None and merge:
        share = "" if scale == 1 else f" {scale}"
        fingerprint = hashlib.sha256((fingerprint + _digest(learned) + share).encode()).hexdigest()
    return Job(opened, learned, artifact, device, stored, merge, chosen, fingerprint,
               min(device.graph.context, opened.context), head, compression, scale, graph)


def _understood(artifact: Artifact, host: Host) -> Learned | None:
    """What was learned, by the plugin that reads it; None for a model, and where PEFT's own merge must do."""
    if artifact.kind == "model":
        return None
    try:
        return understand(artifact, host)
    except CannotLower:
        mergeable = artifact.peft_type in PEFT_TYPES and PEFT_TYPES[artifact.peft_type].merged
        if artifact.kind != "peft" or (host.method_for_peft(artifact.peft_type) and not mergeable):
            raise
    check(artifact)  # what can be refused without the base
    finite_tensors(artifact)
    return None


def _base_name(artifact: Artifact, base: str | None) -> str:
    if artifact.kind == "model":
        if base:
            raise UsageError(f"{artifact.folder}: is a model of its own; --base is for adapters.")
        return str(artifact.folder)
    if not (base or artifact.base):
        raise UsageError(f"{artifact.folder}: does not say which base it belongs to. Name it with --base.")
    return base or artifact.base


def _default_name(source: Path) -> str:
    return source.resolve().name.replace(" ", "-")


def _digest(learned: Learned) -> str:
    digest = hashlib.sha256(learned.method.name.encode())
    for name, array in sorted(learned.tensors.items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()
