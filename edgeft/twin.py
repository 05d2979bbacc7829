"""A run's twins: the same training from its own record, on another grid or on none; cached beside the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.contract.artifact import RECORD, Artifact
from edgeft.contract.base import find_base
from edgeft.contract.device import Device
from edgeft.contract.errors import EdgeftError, Faults, UsageError
from edgeft.contract.files import read_json, sha256
from edgeft.contract.tensors import Weights

if TYPE_CHECKING:
    from edgeft.plugins import Host
    from edgeft.train.job import Job

# words of a training that name or serve its grid, and those that only measure
ON_A_GRID = ("device", "quant", "block", "asymmetric", "rounding", "packed")
MEASURED = ("data", "metrics", "forgetting", "grid", "samples", "versions", "prompt", "probe", "pairs")
PLAIN = {"symmetric": True, "rounding": "rtn"}  # a grid of which nothing else is said


def twin_of(artifact: Artifact, device: Device | None, work: Path, host: Host) -> Path:
    """A run trained as this one was, but on the device's grid, or on float without one: itself, cached, or made now."""
    grid = _grid_of(device) if device else None
    if same_grid(artifact.record.get("grid"), grid):
        return artifact.folder
    stored = asked_for(artifact)
    if grid is None and stored["options"].get("init") == "loftq":  # a start that makes up for a grid's rounding
        stored["options"] = {**stored["options"], "init": "default"}
    key = hashlib.sha256(json.dumps([stored, artifact.record["data"], artifact.base_fingerprint, grid],
                                    sort_keys=True).encode()).hexdigest()[:12]
    folder = work / f"{'{quant}-{block}'.format(**grid) if grid else 'float'}-{key}"
    if not (folder / RECORD).is_file():
        _train(_job(artifact, stored, folder, host), device)
    found = read_json(folder / RECORD).get("grid")
    if not same_grid(found, grid):
        raise EdgeftError(f"{folder}: was to be trained on {_shown(grid)}, and is on {_shown(found)}. Remove it.")
    return folder


def same_grid(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two grids round alike, whatever devices they are named after."""
    if not one or not other:
        return bool(one) == bool(other)
    return all({**PLAIN, **one}[key] == {**PLAIN, **other}[key] for key in ("quant", "block", *PLAIN))


def _grid_of(device: Device) -> dict[str, Any]:
    """A device's grid as edgeft.json tells it."""
    return {key: getattr(device.graph, key) for key in ("quant", "block", *PLAIN) if hasattr(device.graph, key)}


def check_base(artifact: Artifact) -> None:
    """EdgeftError if the base is not the one that the run was trained on."""
    if artifact.kind == "model" or not artifact.base:
        return
    found = Weights(find_base(artifact.base)).fingerprint()
    if artifact.base_fingerprint not in ("", found):
        faults = Faults(f"{artifact.folder}: its base {artifact.base} was changed since it was trained")
        faults.add("base fingerprint", declared=artifact.base_fingerprint[:12], found=found[:12])
        faults.raise_if_any("Put the base back as it was, or train again.")


def asked_for(artifact: Artifact) -> dict[str, Any]:
    """What the run was asked for, without its grid and what was only measured; EdgeftError if its data changed."""
    record = artifact.record
    if not record.get("tasks") or "settings" not in record:
        raise UsageError(f"{artifact.folder}: does not record how it was trained, so it cannot be trained anew.")
    faults = Faults(f"{artifact.folder}: cannot be trained anew")
    paths = {task["name"]: task for task in record["data"]}
    tasks = []
    for task in record["tasks"]:
        if task.get("held_out"):
            continue
        path = Path(paths[task["name"]]["path"])
        if not path.is_file():
            faults.add(f"{path}: is not there any more")
        elif sha256(path) != paths[task["name"]]["sha256"]:
            faults.add(f"{path}", declared=f"sha256 {paths[task['name']]['sha256'][:12]}", found=sha256(path)[:12])
        if task.get("eval_data") and not Path(task["eval_data"]).is_file():
            faults.add(f"{task['eval_data']}: is not there (evaluation data of task {task['name']!r})")
        tasks.append({**task, "data": str(path)})
    faults.raise_if_any("Put the data back as they were, or train again.")
    settings = {key: value for key, value in record["settings"].items() if key not in ON_A_GRID}
    evals = record.get("eval_data") or []
    if evals and not settings.get("stop_at_loss"):  # they decide nothing but that no line was held out
        settings["holdout"], evals = 0.0, []
    rest = {key: value for key, value in record.items() if key not in {*ON_A_GRID, *MEASURED}}
    return {**rest, "base": artifact.base, "tasks": tasks, "eval_data": evals, "settings": settings}


def _job(artifact: Artifact, stored: dict[str, Any], folder: Path, host: Host) -> Job:
    from edgeft.train_command import job_again

    return job_again(host.method(artifact.method), stored, folder)


def _train(job: Job, device: Device | None) -> None:
    """Train, or go on where an earlier call was stopped."""
    from edgeft.train.loop import train
    from edgeft.train.record import say

    say(f"training {job.method.name} anew {f'on the grid of {device.name}' if device else 'on float'}: {job.out}")
    train(replace(job, device=device), resume=job.out.is_dir())


def _shown(grid: Mapping[str, Any] | None) -> str:
    return f"{grid['quant']}, block {grid['block']}" if grid else "float"
