"""`--forgetting-budget`: an adapter at the largest scale whose forgetting, measured by the runner, stays within it.

The scale is folded into the adapter's tensors, so that whatever runs the bundle gets it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.contract.artifact import Artifact, read_artifact
from edgeft.contract.budget import Budget
from edgeft.contract.bundle import MANIFEST, describe_file, read_bundle, write_manifest
from edgeft.contract.bundle_adapters import put_adapter
from edgeft.contract.device import Device
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import (
    copy_file,
    locked,
    read_json,
    refuse_existing,
    scratch,
    sync_folder,
    sync_tree,
)
from edgeft.contract.tensors import TensorFile, write_tensors

from . import verify
from .bundle import add, check_room, export

if TYPE_CHECKING:
    from edgeft.plugins import Host

SMALLEST, MERGES = 0.05, 4  # the least scale that is tried; bundles that are built to find a merged one
GROWTH = 1.5  # forgetting grows with about this power of the scale


def export_within(budget: Budget, source: Path, device: Device, out: Path, *, host: Host, merge: bool = False,
                  **how: Any) -> dict[str, Any]:
    """`export`, scaled to the budget; EdgeftError with the figures if no scale stays within, and nothing is written."""
    refuse_existing(out)
    budget.check_files()
    artifact = read_artifact(source)
    _check_scalable(artifact, merge, how.get("rank", 0))
    with scratch(out) as folder:
        beside = folder / "beside"
        name = str(export(source, device, beside, host=host, **how)["default_adapter"])
        job = _job(budget, artifact, name, how.get("task"))
        found = _fit(beside, job)
        if merge:
            made = _merged(budget, job, found, folder, lambda place, scale: export(
                source, device, place, host=host, merge=True, scale=scale, **{**how, "name": None}))
        else:
            made = beside
            _keep(made, job, found)
        manifest = read_json(made / MANIFEST)
        sync_tree(made)
        made.rename(out)
        sync_folder(out.parent)
    return manifest


def add_within(budget: Budget, bundle: Path, source: Path, name: str, *, host: Host, **how: Any) -> dict[str, Any]:
    """`add`, scaled to the budget; returns the adapter's parity report and its entry in bundle.json."""
    check_room(read_bundle(bundle), name)
    budget.check_files()
    artifact = read_artifact(source)
    _check_scalable(artifact, False, how.get("rank", 0))
    with locked(bundle), scratch(bundle) as folder:  # a copy: the bundle itself stays as it is to the end
        whole = read_bundle(bundle)
        copy = folder / bundle.resolve().name
        for file in (*whole.manifest["files"], MANIFEST):
            copy_file(bundle / file, copy / file)
        report = add(copy, source, name, host=host, **how)
        job = _job(budget, artifact, name, how.get("task"))
        _keep(copy, job, _fit(copy, job))
        manifest = read_json(copy / MANIFEST)
        put_adapter(bundle, copy, manifest["adapters"][name]["file"], manifest)
    return {**report, **manifest["parity"]["adapters"][name], "entry": manifest["adapters"][name]}


def _check_scalable(artifact: Artifact, merge: bool, rank: int) -> None:
    if artifact.kind == "model" and not rank:
        raise UsageError(f"{artifact.folder}: is a model of its own, and only an adapter has a scale at run time. "
                         "Train it with `edgeft train full --interpolate`, or make an adapter of it with --as-adapter.")
    if artifact.record.get("labels"):
        raise UsageError(f"{artifact.folder}: is a classifier; --forgetting-budget is for language models.")
    if merge and artifact.kind != "peft":
        raise UsageError(f"{artifact.folder}: only what PEFT can merge is proven at a scale. Leave out --merge.")


def _job(budget: Budget, artifact: Artifact, name: str, task: str | None) -> dict[str, Any]:
    """What the runner is asked, but for the bundle."""
    data, template = (budget.data, None) if budget.data else _recorded_data(artifact.record, task)
    return {"adapter": name, "budget": budget.nats, "probe": str(budget.probe.resolve()),
            "data": str(Path(data).resolve()) if data else None, "task": template, "source": str(artifact.folder)}


def _recorded_data(record: Mapping[str, Any], task: str | None) -> tuple[Path | None, str | None]:
    """The run's own data, kept from training where some was, and whose template phrases them; None if unclear."""
    tasks = [item for item in record.get("tasks", []) if not item.get("held_out") and task in (None, item["name"])]
    if len(tasks) != 1:
        return None, None
    name = tasks[0]["name"]
    trained = [item["path"] for item in record.get("data", []) if item["name"] == name]
    template = name if name in (record.get("prompt") or {}).get("templates", {}) else None
    for path in (tasks[0].get("eval_data"), *record.get("eval_data", []), *trained):
        if path and Path(path).is_file():
            return Path(path), template
    return None, None


def _ask(bundle: Path, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What the shipped runner finds, in a process of its own; its errors are raised here."""
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder, "job.json"), Path(folder, "found.json")
        asked.write_text(json.dumps({**job, "bundle": str(bundle), **more}))
        done = subprocess.run([sys.executable, "-m", "edgeft.run.scale", str(asked), str(out)], check=False,
                              env={**os.environ, "PYTHONWARNINGS": "ignore"})
        if done.returncode:
            raise EdgeftError(f"The runner cannot measure the bundle (exit code {done.returncode}).")
        found: dict[str, Any] = json.loads(out.read_text())
    if "error" in found:
        raise (UsageError if found["usage"] else EdgeftError)(found["error"])
    return dict(found["found"])


def _fit(bundle: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """The largest scale within the budget, with what was measured; EdgeftError with the figures if there is none."""
    print(f"fitting the scale to a budget of {job['budget']:g} nats per token", file=sys.stderr, flush=True)
    found = _ask(bundle, job, fit=True)
    if found["scale"] is not None:
        return found
    figures = {scale: forgotten for scale, forgotten in found["known"] if scale in (1.0, 0.5, SMALLEST)}
    who = f"{job['source']}: is a soft prompt, which is there or not, so it has no smaller scale, and it" \
        if found["soft"] else f"{job['source']}: no scale of it"
    says = "does not stay" if found["soft"] else "stays"
    raise EdgeftError(f"{who} {says} within --forgetting-budget {job['budget']:g} on {job['probe']}\n" + "\n".join(
        f"  scale {scale:g}: forgets {figures[scale]:+.4f} nats per token" for scale in sorted(figures, reverse=True))
        + "\nAllow more, or train again with --replay or --kl-to-base.")


def _keep(bundle: Path, job: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Fold the scale into the adapter's file, say it in header and manifest, and measure what came of it."""
    name, scale = str(job["adapter"]), float(found["scale"])
    path = bundle / "adapters" / f"{name}.safetensors"
    _fold(path, scale, {"scale": f"{scale:g}", "forgetting": f"{dict(found['known'])[scale]:.6f}",
                        "forgetting_budget": f"{job['budget']:g}", "probe_sha256": found["probe_sha256"],
                        **({"task_loss": f"{found['task']['loss']:.6f}"} if found["task"] else {})})
    manifest = read_json(bundle / MANIFEST)
    manifest["files"][f"adapters/{name}.safetensors"] = describe_file(path)
    entry = manifest["adapters"][name]
    entry |= _told(job, found, scale, dict(found["known"])[scale])
    write_manifest(bundle, manifest)
    if scale == 1:
        return
    manifest["parity"]["adapters"][name]["scale"] = 1.0  # what was proven is the adapter as trained
    _answer_again(bundle, manifest["parity"]["replay"], name)
    write_manifest(bundle, manifest)
    after = _ask(bundle, {**job, "data": None}, fit=False, base_loss=found["base_loss"])["forgetting"]
    if after > job["budget"]:
        raise EdgeftError(f"{job['source']}: forgets {after:+.6f} nats per token with the scale {scale:g} folded in, "
                          f"and {dict(found['known'])[scale]:+.6f} without. This is a bug in edgeft: please report it.")


def _told(job: Mapping[str, Any], found: Mapping[str, Any], scale: float, forgotten: float) -> dict[str, Any]:
    """What bundle.json says: in `forgetting` the same keys as in a run, but measured on the bundle at this scale."""
    return {"scale": scale, "forgetting_budget": job["budget"], "task_loss": found["task"],
            "forgetting": {"forgetting": forgotten, "interval": None, "kl": None, "probe": job["probe"],
                           "probe_sha256": found["probe_sha256"], "tokens": found["tokens"],
                           "base_loss": found["base_loss"], "tuned_loss": found["base_loss"] + forgotten,
                           "own_samples": None, "pairs": None, "by_scale": found["known"]}}


def _fold(path: Path, scale: float, header: Mapping[str, str]) -> None:
    """The adapter's file anew, its slots at this scale: what the runner computes when it is asked for that scale."""
    file = TensorFile(path)
    tensors = {name: _scaled(name, np.array(file[name]), scale) for name in file}
    stage = path.with_suffix(".partial")
    write_tensors(stage, tensors, {**file.metadata, **header})
    os.replace(stage, path)


def _scaled(name: str, array: Any, scale: float) -> Any:
    if scale == 1:
        return array
    kind = name.rpartition(".")[2]
    if kind == "B":
        return array * np.float32(scale)
    return 1 + np.float32(scale) * (array - 1) if kind == "scale" else array


def _answer_again(bundle: Path, replay: list[dict[str, Any]], name: str) -> None:
    """Recorded answers of an adapter whose file was scaled since."""
    items = [item for item in replay if name in item["adapters"]]
    new = max((len(item["tokens"]) for item in replay), default=1)
    found = verify.probe(bundle, [{"ids": item["ids"], "forced": [], "new": new, "adapters": item["adapters"]}
                                  for item in items])
    for index, item in enumerate(items):
        item["tokens"] = found[f"{index}.tokens"].tolist()


def _merged(budget: Budget, job: Mapping[str, Any], found: Mapping[str, Any], folder: Path, build: Any) -> Path:
    """A merged bundle within the budget: at the scale that fits beside the base, or less where merging forgets more."""
    scale, figures = float(found["scale"]), []
    for turn in range(MERGES):
        bundle = folder / f"merged-{turn}"
        manifest = build(bundle, scale)
        measured = _ask(bundle, {**job, "adapter": ""}, fit=False, base_loss=found["base_loss"])
        forgotten = float(measured["forgetting"])
        if forgotten <= budget.nats:
            manifest["merged"] = _told(job, {**found, "task": measured["task"]}, scale, forgotten)
            write_manifest(bundle, manifest)
            return bundle
        figures.append(f"  scale {scale:g}: forgets {forgotten:+.4f} nats per token")
        scale = round(0.99 * scale * max(0.3, (budget.nats / forgotten) ** (1 / GROWTH)), 4)
        if scale < SMALLEST:
            break
    raise EdgeftError(f"{job['source']}: merged, it does not stay within --forgetting-budget {budget.nats:g}\n"
                      + "\n".join(figures) + f"\nBeside the base it does at scale {found['scale']:g}: leave out "
                      "--merge.")
