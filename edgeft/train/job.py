"""What was asked for: written to settings.json at the start, and compared by `--resume`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.contract import Method
from edgeft.contract.device import Device
from edgeft.contract.errors import UsageError
from edgeft.contract.files import read_json, staged, sweep, write_json
from edgeft.options import to_json

from .settings import TrainSettings
from .tasks import TaskSpec
from .tasks import to_json as tasks_to_json

SETTINGS = "settings.json"
FINAL = "final"  # the stage of what was learned is named after it


@dataclass
class Job:
    """One training, its inputs resolved; `eval_data` are files that belong to no task."""

    method: Method[Any]
    options: Any
    settings: TrainSettings
    base: str
    tasks: list[TaskSpec]
    eval_data: list[str]
    probe: str
    out: Path
    device: Device | None = None
    pairs: str = ""

    @property
    def trained(self) -> list[TaskSpec]:
        """The tasks that are trained on; their order gives each its index."""
        return [task for task in self.tasks if not task.held_out]

    @property
    def held_out(self) -> list[TaskSpec]:
        """The tasks that are only measured."""
        return [task for task in self.tasks if task.held_out]

    def to_json(self) -> dict[str, Any]:
        """As recorded."""
        return {"method": self.method.name, "base": self.base, "tasks": tasks_to_json(self.tasks),
                "eval_data": self.eval_data, "probe": self.probe, "pairs": self.pairs,
                "device": self.device.name if self.device else "",
                "options": to_json(self.options), "settings": to_json(self.settings)}


def begin(job: Job) -> None:
    """Make the run folder, its settings in it from the first moment on: without them nothing could be resumed."""
    if job.out.is_dir():
        write_json(job.out / SETTINGS, job.to_json())
        return
    with staged(job.out) as stage:
        write_json(stage / SETTINGS, job.to_json())


def stored_settings(out: Path) -> dict[str, Any]:
    """What an unfinished run was started with; UsageError if there is none."""
    if (out / "edgeft.json").is_file():
        shutil.rmtree(out / "checkpoints", ignore_errors=True)  # killed at its very end, it could not do that itself
        sweep(out / FINAL)
        raise UsageError(f"{out}: this run has ended; there is nothing to resume.")
    if not (out / SETTINGS).is_file():
        raise UsageError(f"{out}: there is no run to resume here.")
    return read_json(out / SETTINGS)


def refuse_changes(job: Job, stored: dict[str, Any]) -> None:
    """UsageError names what differs from the run that is to go on."""
    found = job.to_json()
    changed = [key for part in ("options", "settings") for key, value in found[part].items()
               if value != stored.get(part, {}).get(key)]
    changed += [key for key in ("base", "tasks", "eval_data", "probe", "pairs", "device")
                if found[key] != stored.get(key)]
    if changed:
        raise UsageError(f"{job.out}: --resume goes on with the run as it was started, and these differ: "
                         f"{', '.join(changed)}. Leave them out, or start a new run.")
