"""`export` and `add`: from an artifact to a verified bundle, or to one clear refusal that leaves nothing behind."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft import __version__
from edgeft.contract.base import read_config
from edgeft.contract.bundle import (
    FORMAT,
    GRAPH,
    MANIFEST,
    Bundle,
    check_name,
    describe_file,
    read_bundle,
    write_manifest,
)
from edgeft.contract.bundle_adapters import put_adapter
from edgeft.contract.device import Cpu, Device, Graph, Limits, Run
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import copy_file, locked, refuse_existing, scratch, staged, sweep
from edgeft.contract.fit import Fit, fit
from edgeft.contract.grid import Quant, fingerprint
from edgeft.contract.plan import Wish
from edgeft.contract.shape import shape_of
from edgeft.contract.signature import refuse_if_signed_only

from .accelerate import prepare_for_provider
from .adapters import Places, lower, merge_weight, write_adapter
from .assemble import Assembly
from .encoder import build_encoder, expose_hidden
from .graph import BaseGraph, build_graph, make_standard
from .heads import describe_head, write_head
from .ondevice import rounding
from .oracle import Oracle
from .padding import exact_padding
from .parity_classify import prove_any
from .placement import integer_operator
from .resolve import Job, resolve
from .same_grid import check_codes, check_description
from .sidecars import generation, write_genai_config, write_tokenizer
from .variants import write_variants
from .webpage import check_page, read_packages, write_page
from .weights import GraphBase, Source

if TYPE_CHECKING:
    from edgeft.plugins import Host


def export(source: Path, device: Device, out: Path, *, host: Host, merge: bool = False, base: str | None = None,
           quant: str | Quant | None = None, name: str | None = None, task: str | None = None, rank: int = 0,
           scale: float = 1.0, graph: Path | None = None, version: int = 0) -> dict[str, Any]:
    """Write a bundle and return its manifest; below the bar nothing is left behind.

    `quant`: a kind on the device's own blocks, or a whole grid. `rank`: compress what was learned, a whole tuned model
    too, to a low-rank adapter beside its base. `scale`: how much of the change is merged.
    `graph`: an ONNX file of the base that others made, used instead of one built here. `version`: its publisher's.
    """
    refuse_existing(out)
    job = resolve(source, device, host, merge=merge, base=base, quant=quant, name=name, task=task, rank=rank,
                  scale=scale, graph=graph)
    weights = Source(job.base.weights, job.base.tied, _merging(job))
    check_description(job, quant)
    predicted = _predict(job)
    _check_memory(predicted)
    from_npm = read_packages(device, generates=job.task == "text-generation")  # before the work, not behind it
    with staged(out) as stage:
        _say(f"building the {job.quant.kind} graph of {job.base.name}")
        built, assembly = _write_graph(job, weights, stage)
        check_codes(job, assembly.digests)
        modules = [module for slot in assembly.slots for module in slot.modules]
        tokenizer = write_tokenizer(job.base, stage)
        if job.task == "text-generation":
            write_genai_config(job.base, stage, context=job.context, shared=built.cache == "shared")
        if job.own_head:
            write_head(stage, job.own_head)
        if job.beside:
            _write_adapter(job, weights, Places(job.slots, assembly.slots, built.layers, job.context), stage)
        if from_npm:
            write_page(stage, from_npm)
        manifest = _manifest(job, built, assembly, _memory(predicted))
        manifest |= {"version": version} if version else {}
        if job.standard:
            prepare_for_provider(job, assembly.slots, stage, manifest)
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
    with scratch(bundle_folder) as stage:  # a copy, so that the bundle itself stays whole
        for file in manifest["files"]:
            copy_file(bundle_folder / file, stage / file)
        file = _write_adapter(job, weights, Places(bundle.kinds, bundle.linears, bundle.prefix_layers, bundle.context,
                                                    bundle.slot_rank), stage)
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
        if job.standard:
            make_standard(graph)
    else:
        graph = build_graph(job.base.config, job.base.load, weights, job.context, standard=job.standard,
                            given=job.graph)
        expose_hidden(graph, keep_logits=job.task == "text-generation")
    assembly = Assembly(graph, weights, job.quant, job.slots,
                        integers=integer_operator(job.device) if job.standard else "")
    assembly.write(stage)
    if graph.builder == "given" and graph.cache == "growing":
        graph.padding = exact_padding(stage / GRAPH, graph.layers, job.base.config.vocab_size)
    if job.device.browser:
        check_page(job.device, graph.cache)
    elif graph.cache == "shared":
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


def _manifest(job: Job, graph: BaseGraph, assembly: Assembly, memory: dict[str, Any]) -> dict[str, Any]:
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
        "memory": memory,
        "parity": {},
        "provenance": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"), "by": f"edgeft {__version__}",
            "platform": platform.platform(), "source": str(job.source), "merged": job.merge,
            "method": job.learned.method.name if job.learned else job.artifact.method or None,
            "graph": {"file": str(job.graph), **describe_file(job.graph)} if job.graph else None,
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
    write_manifest(stage, manifest)


def _predict(job: Job) -> Fit:
    """What the bundle will take at the device's full context, its adapter resident."""
    shape = shape_of(job.base.folder, read_config(job.base.folder))
    each = sum(4 * array.size for array in job.learned.tensors.values()) if job.learned and job.beside else 0
    return fit(shape, job.device, Wish(job.quant, job.context, adapters=int(job.beside), each=each,
                                        budget_mib=job.device.limits.budget_mib))


def _check_memory(predicted: Fit) -> None:
    if not predicted.fits:
        parts = ", ".join(f"{name} {size:,.0f}" for name, size in predicted.plan.to_json().items() if size >= 1)
        raise EdgeftError(f"{predicted.device.name}: this bundle would take {predicted.plan.peak_mib:,.0f} MiB at its "
                          f"peak, and the device gives it {predicted.budget_mib:,} MiB: {predicted.over_mib:,.0f} MiB "
                          f"too much ({parts}). What would help, the cheapest first:\n{predicted.describe_ways()}")


def _memory(predicted: Fit) -> dict[str, Any]:
    """MiB, as bundle.json holds them."""
    return {**predicted.plan.to_json(), "predicted_peak_mib": round(predicted.plan.peak_mib, 1),
            "installed_peak_mib": round(predicted.plan.installed_mib, 1)}


def _recorded_device(bundle: Bundle) -> Device:
    """The device that a bundle was made for, as its manifest holds it."""
    stored = bundle.manifest["device"]
    return Device(name=stored["name"], summary=stored["summary"], verified=stored["verified"],
                  limits=Limits(**stored["limits"]), cpu=Cpu(**stored["cpu"]), run=Run(**stored["run"]),
                  graph=Graph(**stored["graph"]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
