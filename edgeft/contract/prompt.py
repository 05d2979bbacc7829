"""How a prompt becomes the text that the model sees: recorded by the run, applied by the runner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import EdgeftError, UsageError, did_you_mean

if TYPE_CHECKING:
    from .data import Render

PLACE = "{prompt}"


@dataclass(frozen=True)
class PromptFormat:
    """The phrasing that a model was trained on.

    raw: as it is; pair: the task's template, filled in, + separator; chat: the chat template around one user
    message. `templates` holds (task, template) for each task of a mixture that used any.
    """

    kind: Literal["raw", "pair", "chat"] = "raw"
    separator: str = ""
    templates: tuple[tuple[str, str], ...] = ()

    def apply(self, prompt: str, render: Render | None, task: str | None = None) -> str:
        """The text to feed for `prompt`."""
        template = self.template(task)
        if self.kind == "chat":
            if render is None:
                raise EdgeftError("This adapter was trained on chats, and there is no chat template.")
            return render([{"role": "user", "content": prompt}], True)
        return fill(template, prompt) + self.separator

    def template(self, task: str | None = None) -> str:
        """The template of a task; without a name the only one there is. UsageError lists the tasks otherwise."""
        known = dict(self.templates)
        if task is not None:
            if not known:
                raise UsageError(f"task {task!r}: this was trained without prompt templates. Leave the task out.")
            if task not in known:
                raise UsageError(f"There is no task {task!r}.{did_you_mean(task, list(known))}")
            return known[task]
        if len(set(known.values())) > 1:
            raise UsageError(f"Each task was trained with its own prompt template: {', '.join(known)}. Choose one "
                             "with --task, or feed the text as it is with --raw.")
        return next(iter(known.values()), "")

    def only(self, task: str) -> PromptFormat:
        """The format of one task alone, for an adapter that serves just that."""
        return PromptFormat(self.kind, self.separator, tuple(pair for pair in self.templates if pair[0] == task))

    def to_json(self) -> dict[str, Any]:
        """As it is stored in edgeft.json and in bundles."""
        stored = {"kind": self.kind, "separator": self.separator}
        return {**stored, "templates": dict(self.templates)} if self.templates else {**stored}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> PromptFormat:
        """Read back what `to_json` wrote; raw where nothing is recorded."""
        value = value or {}
        kind, separator = value.get("kind", "raw"), value.get("separator", "")
        templates = value.get("templates", {})
        if kind not in ("raw", "pair", "chat") or not isinstance(separator, str):
            raise EdgeftError(f"prompt format {value!r} is not one of raw, pair, chat")
        if not isinstance(templates, dict):
            raise EdgeftError(f"prompt templates must be task -> text, found {templates!r}")
        for task, text in templates.items():
            try:
                check_template(text)
            except ValueError as error:
                raise EdgeftError(f"prompt template of task {task!r} {error}") from None
        return cls(kind, separator, tuple(templates.items()))

    def to_metadata(self) -> dict[str, str]:
        """As an adapter file's header holds it: text alone."""
        stored = {"prompt": self.kind, "separator": self.separator}
        return {**stored, "templates": json.dumps(dict(self.templates))} if self.templates else stored

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> PromptFormat:
        """Read back what `to_metadata` wrote."""
        try:
            templates = json.loads(metadata.get("templates", "{}"))
        except (ValueError, RecursionError):
            raise EdgeftError(f"prompt templates are not JSON: {metadata['templates'][:60]!r}") from None
        return cls.from_json({"kind": metadata.get("prompt", "raw"), "separator": metadata.get("separator", ""),
                              "templates": templates})


def check_template(text: Any) -> str:
    """The template itself; ValueError says what is wrong with it."""
    if not isinstance(text, str):
        raise ValueError(f"must be text, found {type(text).__name__}")
    if text.count(PLACE) != 1:
        raise ValueError(f"must hold {PLACE} exactly once, found it {text.count(PLACE)} times in {text!r}")
    rest = text.replace(PLACE, "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"must hold no braces but those of {PLACE}: nothing else is filled in, found {text!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a character (a lone surrogate)")
    return text


def fill(template: str, prompt: str) -> str:
    """A template with the prompt in its place; the prompt itself where there is none."""
    return template.replace(PLACE, prompt) if template else prompt
