"""Methods that learn something for each task of a mixture, and which task's is shipped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from .errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from .artifact import Artifact  # with numpy, which `edgeft --help` does without

TaskOptionsT = TypeVar("TaskOptionsT", bound="TaskOptions")


@dataclass(frozen=True)
class TaskOptions:
    """Options of a method that learns something for each task of a mixture; its own Options extend this class.

    Training fills in `tasks` before `attach` is called. The model that `attach` returns takes `task_ids [batch]`,
    indices into `tasks`, in its forward pass: each line's own in training, and `task_index` for any other text.
    `lower` ships what was learned for `task_index`.
    """

    tasks: tuple[str, ...] = field(default=(), metadata={"help": "Names of the tasks; the mixture's, filled in."})
    task: str = field(default="", metadata={"help": "The task whose prompt is shipped; none: the first."})

    def __post_init__(self) -> None:
        if self.tasks and self.task and self.task not in self.tasks:
            raise ValueError(f"there is no task {self.task!r}.{did_you_mean(self.task, list(self.tasks))}")

    @property
    def task_index(self) -> int:
        """Index of the task that is shipped."""
        return self.tasks.index(self.task) if self.task else 0


def choose_task(artifact: Artifact, options: TaskOptionsT, task: str | None) -> tuple[Artifact, TaskOptionsT]:
    """The artifact and its options for one task: `task`, or the one that training named; UsageError lists them.

    A PEFT folder knows no names: a run's record does. The prompt format is narrowed to that task's template.
    """
    recorded = artifact.record.get("options") or {}
    try:
        options = replace(options, tasks=tuple(recorded.get("tasks") or options.tasks),
                          task=task or recorded.get("task") or options.task)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{artifact.folder}: {error}") from None
    if artifact.prompt.templates:
        prompt = artifact.prompt.only(options.tasks[options.task_index])
        artifact = replace(artifact, record={**artifact.record, "prompt": prompt.to_json()})
    return artifact, options
