"""Training and evaluation data: JSON lines in, token ids with a loss mask out.

One implementation for the trainer and the runner, so that what a model was trained on is what it is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .errors import EdgeftError, Faults, UsageError
from .opening import Refused, open_plain
from .prompt import fill

MAX_LINE = 16 << 20  # bytes
Record = dict[str, Any]
Segment = tuple[str, bool]  # text, whether it carries loss
Render = Callable[[list[dict[str, str]], bool], str]  # messages, add_generation_prompt -> text


class Encoding(Protocol):
    """What `tokenizers.Tokenizer.encode` returns."""

    @property
    def ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is needed here."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding: ...


@dataclass(frozen=True)
class Example:
    """Token ids and which of them carry loss (`mask[i]` belongs to predicting `ids[i]`).

    `task` is the index of the trained task that it belongs to, None for anything else.
    """

    ids: list[int]
    mask: list[bool]
    task: int | None = None

    @property
    def prompt(self) -> list[int]:
        """The ids before the first that carries loss."""
        return self.ids[: self.mask.index(True)] if True in self.mask else self.ids


LINES = ('A line is {"prompt": ..., "completion": ...}, {"messages": [...]}, {"text": ...} or {"text": ..., '
         '"label": ...}; one kind per file.')


def read_records(path: Path) -> list[Record]:
    """Read and check every line of data; EdgeftError names file, line number and reason of each broken one."""
    return read_lines(path, kind_of, LINES)


def read_lines(path: Path, kind: Callable[[Any], str], advice: str) -> list[Record]:
    """JSON lines that are all of one kind; `kind` tells it or raises ValueError, `advice` says how a line must be."""
    path = Path(path)
    faults = Faults(f"{path}: has lines that cannot be used")
    records: list[Record] = []
    kinds: dict[str, int] = {}
    try:
        with open_plain(path) as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    faults.add(f"line {number}: is longer than {MAX_LINE >> 20} MiB; what follows was not read")
                    break
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode("utf-8"))
                    kinds.setdefault(kind(record), number)
                    records.append(record)
                except (ValueError, RecursionError) as error:
                    faults.add(f"line {number}: {_reason(error)}")
    except Refused as error:
        raise UsageError(f"{path}: {error}. A file of JSON lines is needed.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). A file of JSON lines is needed.") from None
    if len(kinds) > 1 and not faults.lines:
        faults.add("lines of different kinds: " + ", ".join(f"{name} (line {line})" for name, line in kinds.items()))
    faults.raise_if_any(advice)
    if not records:
        raise EdgeftError(f"{path}: holds no lines.")
    return records


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg} at column {error.colno})"
    return str(error)


def kind_of(record: Any) -> str:
    """pair, chat, label or text; ValueError with the reason for anything else."""
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, found {type(record).__name__}")
    if "messages" in record:
        _check_messages(record["messages"])
        return "chat"
    fields = [name for name in ("prompt", "completion", "text", "label") if name in record]
    if "text" in fields and "prompt" not in fields:
        wanted, kind = (["text", "label"], "label") if "label" in fields else (["text"], "text")
    else:
        wanted, kind = ["prompt", "completion"], "pair"
    for name in wanted:
        if name not in record:
            raise ValueError(f"has {', '.join(map(repr, record)) or 'no keys'} but no {name!r}")
        if isinstance(record[name], str) and not _is_text(record[name]):
            raise ValueError(f"{name!r} holds half a character (a lone surrogate)")
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} must be a string, found {type(record[name]).__name__}")
    if kind in ("pair", "text") and not record[wanted[-1]].strip():
        raise ValueError(f"{wanted[-1]!r} is empty: there is nothing to learn from it")
    return kind


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) \
                or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError("each message needs a 'role' (system, user or assistant) and a 'content' string")
        if not _is_text(message["content"]):
            raise ValueError("a message holds half a character (a lone surrogate)")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("'messages' has no assistant turn: there is nothing to learn from it")


def segments(record: Record, separator: str, render: Render | None, template: str = "") -> list[Segment]:
    """The parts of one line in order, each with whether it carries loss; `template` phrases a pair's prompt."""
    kind = kind_of(record)
    if kind in ("text", "label"):
        return [(record["text"], True)]
    if kind == "pair":
        return [(fill(template, record["prompt"]) + separator, False), (record["completion"], True)]
    if render is None:
        raise EdgeftError("Lines with 'messages' need a chat template, and this base has none. Put a "
                          "chat_template.jinja into its folder, or write the lines as prompt and completion.")
    return _chat_segments(record["messages"], render)


def _chat_segments(messages: list[dict[str, str]], render: Render) -> list[Segment]:
    parts: list[Segment] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        for text, learn in ((render(messages[:index], True), False), (render(messages[: index + 1], False), True)):
            if not text.startswith(done):
                raise EdgeftError("This chat template rewrites earlier turns when a later one is added, so the "
                                  "tokens that carry loss cannot be told apart. Write one line per turn.")
            parts.append((text[len(done):], learn))
            done = text
    return parts


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens; a template that writes <s> itself does not get two."""
    ids = tokenizer.encode(text, add_special_tokens=True).ids
    if len(ids) > 1 and ids[0] == ids[1] and tokenizer.encode(text, add_special_tokens=False).ids == ids[1:]:
        return ids[1:]
    return ids


def encode(tokenizer: Tokenizer, parts: Sequence[Segment], eos: int | None) -> Example:
    """Tokenize segments so that the prompt's ids are exactly what the runner will feed.

    The text before a boundary is always tokenized by itself: where a merge would cross the boundary, the rest
    is tokenized apart instead. `eos` ends a line whose last segment carries loss and does not hold it already.
    """
    ids: list[int] = []
    mask: list[bool] = []
    fresh: list[int] = []
    done = ""
    for text, learn in parts:
        whole = encode_text(tokenizer, done + text)
        fresh = whole[len(ids):] if whole[: len(ids)] == ids \
            else tokenizer.encode(text, add_special_tokens=False).ids
        ids += fresh
        mask += [learn] * len(fresh)
        done += text
    if eos is not None and mask and mask[-1] and eos not in fresh:
        ids.append(eos)
        mask.append(True)
    if mask and mask[0]:  # nothing predicts the first token
        mask[0] = False
    return Example(ids, mask)


def windows(example: Example, length: int) -> Iterator[Example]:
    """Cut an example that is longer than `length` tokens; every token that carries loss stays in one window."""
    if len(example.ids) <= length:
        yield example
        return
    for start in range(0, len(example.ids) - 1, length - 1):
        ids, mask = example.ids[start : start + length], example.mask[start : start + length]
        mask = [False, *mask[1:]]
        if any(mask):
            yield Example(ids, mask, example.task)


def task_names(paths: Sequence[Path]) -> list[str]:
    """A short name per file, with as much of its folder as makes them differ."""
    for depth in range(1, 1 + max(len(path.resolve().parts) for path in paths)):
        whole = len({path.resolve().with_suffix("") for path in paths}) < len({path.resolve() for path in paths})
        names = ["/".join((path.resolve() if whole else path.resolve().with_suffix("")).parts[-depth:])
                 for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"--data names one file twice: {', '.join(map(str, paths))}. Give it a weight instead.")


def record_digest(record: Record) -> str:
    """A digest of one line's content, the same for equal lines."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
