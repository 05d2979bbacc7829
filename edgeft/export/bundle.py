"""`export` and `add`: from an artifact to a verified bundle, or to one clear refusal that leaves nothing behind."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft import __version__
from edgeft.contract.bundle import (
    FORMAT,
    GRAPH_DATA,
    MANIFEST,
    Bundle,
    check_name,
    describe_file,
    read_bundle,
)
from edgeft.contract.device import Cpu, Device, Graph, Limits, Run
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import (
    disk_errors,
    link_or_copy,
    locked,
    refuse_existing,
    scratch,
    staged,
    sweep,
    sync_folder,
    sync_tree,
    write_json,
)
from edgeft.contract.grid import Quant, fingerprint
from edgeft.contract.signature import refuse_if_signed_only

from .adapters import Places, lower, merge_weight, write_adapter
from .assemble import Assembly
from .encoder import build_encoder, expose_hidden
from .graph import BaseGraph, build_graph
from .heads import describe_head, write_head
from .ondevice import rounding
from .oracle import Oracle
from .parity_classify import prove_any
from .resolve import Job, resolve
from .same_grid import check_codes, check_description
from .sidecars import generation, write_genai_config, write_tokenizer
from .variants import write_variants
from .weights import GraphBase, Source

if TYPE_CHECKING:
    from edgeft.plugins import Host

RUNTIME_MIB = 70  # Python, numpy, tokenizers and onnxruntime themselves


def export(source: Path, device: Device, out: Path, *, host: Host, merge: bool = False, base: str | None = None,
           quant: str | Quant | None = None, name: str | None = None, task: str | None = None, rank: int = 0,
           scale: float = 1.0, version: int = 0) -> dict[str, Any]:
    """Write a bundle and return its manifest; below the bar nothing is left behind.

    `quant`: a kind on the device's own blocks, or a whole grid. `rank`: compress what was learned, a whole tuned model
    too, to a low-rank adapter beside its base. `scale`: how much of the change is merged. `version`: its publisher's.
    """
    refuse_existing(out)
    job = resolve(source, device, host, merge=merge, base=base, quant=quant, name=name, task=task, rank=rank,
                  scale=scale)
    weights = Source(job.base.weights, job.base.tied, _merging(job))
    check_description(job, quant)
    with staged(out) as stage:
        _say(f"building the {job.quant.kind} graph of {job.base.name}")
        graph, assembly = _write_graph(job, weights, stage)
        check_codes(job, assembly.digests)
        modules = [module for slot in assembly.slots for module in slot.modules]
        tokenizer = write_tokenizer(job.base, stage)
        if job.task == "text-generation":
            write_genai_config(job.base, stage, context=job.context, shared=graph.cache == "shared")
        if job.own_head:
            write_head(stage, job.own_head)
        if job.beside:
            _write_adapter(job, weights, Places(job.slots, assembly.slots, graph.layers, job.context), stage)
        manifest = {**_manifest(job, graph, assembly, stage), **({"version": version} if version else {})}
        _check_memory(job, manifest["memory"])
        _write_manifest(stage, manifest)
        _say("verifying against torch")
        manifest["parity"], manifest["memory"]["verified_peak_mib"] = prove_any(job, modules, stage, tokenizer)
        _write_manifest(stage, manifest)
    return manifest


def add(bundle_folder: Path, source: Path, name: str, *, host: Host, base: str | None = None,
        task: str | None = None, rank: int = 0) -> dict[str, Any]:
    """Put one more adapter beside a bundle's base; returns its parity report. Another `add` to it waits meanwhile."""
    bundle = read_bundle(bundle_folder)
    sweep(bundle_folder)
    check_room(bundle, name)
    with locked(bundle_folder):
        return _add(bundle_folder, source, name, host=host, base=base, task=task, rank=rank)


def _add(bundle_folder: Path, source: Path, name: str, *, host: Host, base: str | None, task: str | None,
         rank: int) -> dict[str, Any]:
    bundle = read_bundle(bundle_folder)
    check_room(bundle, name)
    bundle.check_files(whole=True)
    job = resolve(source, _recorded_device(bundle), host, base=base or bundle.manifest["base"]["folder"],
                  quant=Quant.from_json(bundle.manifest["quant"]), name=name, task=task, rank=rank)
    if not job.beside:
        raise UsageError(f"{source}: is a model of its own, not an adapter. `edgeft export` makes a bundle of it; "
                         "--as-adapter compresses it to an adapter.")
    faults = Faults(f"{source}: cannot be added to bundle '{bundle_folder.name}'")
    if job.fingerprint != bundle.fingerprint:
        faults.add("base fingerprint", declared=bundle.fingerprint[:12], found=job.fingerprint[:12])
    faults.raise_if_any("Train it on this bundle's base, or name that base with --base.")
    check_description(job, job.quant)
    weights = Source(job.base.weights, job.base.tied)
    manifest = {**bundle.manifest}
    with scratch(bundle_folder) as stage:  # a second name for every file, so that the bundle itself stays whole
        for file in manifest["files"]:
            link_or_copy(bundle_folder / file, stage / file)
        file = _write_adapter(job, weights, Places(bundle.kinds, bundle.linears, bundle.prefix_layers, bundle.context),
                              stage)
        manifest["adapters"] = {**manifest["adapters"], name: _adapter_entry(job)}
        _write_manifest(stage, manifest)
        _say("verifying against torch")
        modules = [module for slot in bundle.linears for module in slot.modules]
        parity, _ = prove_any(job, modules, stage, job.base.tokenizer())
        report = parity["adapters"][name]
        manifest["parity"] = {**manifest["parity"],
                              "adapters": {**manifest["parity"]["adapters"], name: report},
                              "replay": [*manifest["parity"]["replay"],
                                         *(item for item in parity["replay"] if item["adapters"])]}
        put_adapter(bundle_folder, stage, file, manifest)
    return dict(report)


def put_adapter(bundle_folder: Path, stage: Path, file: str, manifest: dict[str, Any]) -> None:
    """Move a finished adapter into a bundle, then tell its manifest: a file that is in no list is never read."""
    sync_tree(stage / "adapters")
    with disk_errors(bundle_folder):
        (bundle_folder / "adapters").mkdir(exist_ok=True)
        os.replace(stage / file, bundle_folder / file)
        try:
            sync_folder(bundle_folder / "adapters")
            write_json(bundle_folder / MANIFEST, manifest)
        except BaseException:
            (bundle_folder / file).unlink(missing_ok=True)
            raise
        sync_folder(bundle_folder)


def check_room(bundle: Bundle, name: str) -> None:
    """UsageError if a bundle cannot take an adapter of this name."""
    check_name(name)
    if name in bundle.adapters:
        raise UsageError(f"{bundle.folder}: has an adapter {name!r} already. Choose another name, or "
                         f"`edgeft remove {bundle.folder} {name}` first.")
    refuse_if_signed_only(bundle.folder, "an adapter that is made")
    if not bundle.kinds:
        raise UsageError(f"{bundle.folder}: its graph takes no adapters. Export the base without --merge.")


def _merging(job: Job) -> Any:
    if not job.merge or job.learned is None:
        return None
    learned, scale = job.learned, np.float32(job.scale)
    if scale == 1:
        return lambda name, weight: merge_weight(learned, name, weight)
    return lambda name, weight: weight + scale * (merge_weight(learned, name, weight) - weight)


def _write_graph(job: Job, weights: Source, stage: Path) -> tuple[BaseGraph, Assembly]:
    if job.base.encodes:
        graph = build_encoder(job.base.load(), weights)
    else:
        graph = build_graph(job.base.config, job.base.load, weights, job.context)
        expose_hidden(graph, keep_logits=job.task == "text-generation")
    assembly = Assembly(graph, weights, job.quant, job.slots)
    assembly.write(stage)
    if graph.cache == "shared":
        write_variants(stage, assembly.slots if "lowrank" in job.slots else [])
    return graph, assembly


def _write_adapter(job: Job, weights: Source, places: Places, stage: Path) -> str:
    """Lower what was learned into adapters/NAME.safetensors; returns that path within the bundle."""
    assert job.learned is not None

    def keys_values(embeddings: Any) -> Any:
        """The base as the device holds it, run in torch: an adapter's prefix must come from the very same weights."""
        oracle = Oracle(job.base.load(), job.base.eos)
        oracle.round(job.quant, list(places.linears))
        return oracle.keys_values(embeddings)

    base = GraphBase(job.base.config.to_dict(), weights, places.linears, keys_values,
                     rounding(job.base, job.quant, places.linears))
    lowered = lower(job.learned, base, places)
    file = f"adapters/{job.name}.safetensors"
    write_adapter(stage / file, lowered, job.learned, job.fingerprint, job.head)
    return file


def _manifest(job: Job, graph: BaseGraph, assembly: Assembly, stage: Path) -> dict[str, Any]:
    """bundle.json, as far as it is known before verification."""
    device = asdict(job.device)
    return {
        "format": FORMAT,
        "task": job.task,
        "base": {"id": job.base.name, "folder": str(job.base.folder.resolve()), "fingerprint": job.fingerprint,
                 "architecture": job.base.config.model_type, "parameters": job.base.weights.parameters},
        "device": {key: device[key] for key in ("name", "summary", "limits", "cpu", "run", "graph", "verified")},
        "quant": {**job.quant.to_json(), **({"fingerprint": fingerprint(assembly.digests)} if job.quant.bits else {})},
        "context": job.context,
        "graph": {"file": "model.onnx", "builder": graph.builder, "cache": graph.cache, "padding": graph.padding},
        "linears": [slot.to_json() for slot in assembly.slots],
        "slots": {"lowrank": [slot.to_json() for slot in assembly.slots] if "lowrank" in job.slots else [],
                  "scale": [slot.to_json() for slot in assembly.scales],
                  "prefix": graph.layers if "prefix" in job.slots else []},
        "generation": generation(job.base),
        "prompt": None if job.beside else job.artifact.prompt.to_json(),
        "adapters": {job.name: _adapter_entry(job)} if job.beside else {},
        "default_adapter": job.name or None,
        "memory": _memory_plan(job, stage),
        "parity": {},
        "provenance": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"), "by": f"edgeft {__version__}",
            "platform": platform.platform(), "source": str(job.source), "merged": job.merge,
            "method": job.learned.method.name if job.learned else job.artifact.method or None,
            "forgetting": job.artifact.record.get("forgetting"),
            "packages": {name: version(name) for name in ("torch", "transformers", "peft", "onnxruntime",
                                                          "mobius-onnx", "onnx-ir")}},
        "files": {},
    }


def _adapter_entry(job: Job) -> dict[str, Any]:
    assert job.learned is not None
    return {"file": f"adapters/{job.name}.safetensors", "method": job.learned.method.name,
            "prompt": job.artifact.prompt.to_json(), "source": str(job.source),
            "forgetting": job.artifact.record.get("forgetting"), **describe_head(job.head)}


def _write_manifest(stage: Path, manifest: dict[str, Any]) -> None:
    names = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*")
                   if path.is_file() and path.name != MANIFEST)
    manifest["files"] = {name: describe_file(stage / name) for name in names}
    write_json(stage / MANIFEST, manifest)


def _memory_plan(job: Job, stage: Path) -> dict[str, Any]:
    """What the runner will hold at the device's full context, in MiB."""
    config = job.base.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 0 if job.base.encodes else 2 * config.num_hidden_layers * heads * size * job.context * 4
    weights = (stage / GRAPH_DATA).stat().st_size
    adapter = stage / "adapters" / f"{job.name}.safetensors"
    parts = {"weights": 2 * weights,  # onnxruntime keeps a prepacked copy beside the mapped file
             "cache": cache, "adapter": adapter.stat().st_size if adapter.is_file() else 0,
             "logits": 4 * config.vocab_size if job.task == "text-generation" else 0,  # of one token
             "runtime": RUNTIME_MIB << 20}
    plan = {name: round(size / 2**20, 1) for name, size in parts.items()}
    return {**plan, "predicted_peak_mib": round(sum(plan.values()), 1)}


def _check_memory(job: Job, plan: dict[str, Any]) -> None:
    budget, wanted = job.device.limits.budget_mib, plan["predicted_peak_mib"]
    if wanted <= budget:
        return
    ways = []
    if job.quant.kind != "int4":
        ways.append("--quant int4")
    if plan["cache"] > 0.2 * wanted:
        ways.append(f"a device file with a context below {job.context}")
    raise EdgeftError(f"{job.device.name}: this bundle would take {wanted:,.0f} MiB at its peak, and the device gives "
                      f"it {budget:,} MiB: {wanted - budget:,.0f} MiB too much "
                      f"({', '.join(f'{name} {size:,.0f}' for name, size in plan.items() if name[0] != 'p')}). "
                      f"What would help: {', '.join([*ways, 'a smaller base'])}.")


def _recorded_device(bundle: Bundle) -> Device:
    """The device that a bundle was made for, as its manifest holds it."""
    stored = bundle.manifest["device"]
    return Device(name=stored["name"], summary=stored["summary"], verified=stored["verified"],
                  limits=Limits(**stored["limits"]), cpu=Cpu(**stored["cpu"]), run=Run(**stored["run"]),
                  graph=Graph(**stored["graph"]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
