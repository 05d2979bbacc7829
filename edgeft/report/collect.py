"""Folders from the command line to what the page shows: runs, bundles, and runs that can be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeft.contract.bundle import MANIFEST, read_bundle
from edgeft.contract.errors import UsageError

from .fields import Fields
from .runs import Run, read_run


@dataclass
class Made:
    """A bundle, and what of it comes from the runs given."""

    folder: Path
    manifest: Fields
    label: str = ""
    subjects: list[Subject] = field(default_factory=list)

    @property
    def size(self) -> float:
        """Bytes of all its files."""
        return sum(entry.number("size") or 0 for entry in self.manifest.named("files").values())


@dataclass(frozen=True)
class Subject:
    """The base or an adapter of a bundle: its proof, and the run that it comes from."""

    name: str
    kind: str  # "base", "model" or "adapter"
    report: Fields  # its parity
    size: float | None
    source: str
    run: Run | None
    entry: Fields  # where the bundle says what was forgotten


@dataclass
class Group:
    """Runs whose losses can be compared: one base, the same lines to measure on."""

    runs: list[Run]
    measured: bool

    @property
    def unit(self) -> str:
        """What losses are counted per."""
        return self.runs[0].unit

    @property
    def counted(self) -> str:
        """The same in words."""
        return "example" if self.unit == "example" else "completion token"

    @property
    def name(self) -> str:
        """Base and tasks."""
        run = self.runs[0]
        what = ", ".join(score.name for score in run.scores) if self.measured else \
            f"trained on {', '.join(run.tasks) or 'data not recorded'}, without an evaluation set"
        return f"{run.base or 'a base without a name'} · {what}"


@dataclass
class Collected:
    """All that the page is made of."""

    runs: list[Run]
    bundles: list[Made]
    groups: list[Group]

    @property
    def counted(self) -> str:
        """How many there are, in words."""
        return ", ".join(f"{len(items)} {name}{'' if len(items) == 1 else 's'}"
                         for name, items in (("run", self.runs), ("bundle", self.bundles)) if items)


def collect(folders: Sequence[Path]) -> Collected:
    """Read every folder; UsageError for what is neither a run nor a bundle, or is named twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (first := seen.get(_real(folder))) is not None:
            raise UsageError(f"{folder}: is given twice{f', as {first} too' if first != folder else ''}. Name each "
                             "folder once.")
        seen[_real(folder)] = folder
    runs: list[Run] = []
    bundles: list[Made] = []
    for folder in folders:
        if (folder / MANIFEST).is_file():
            bundles.append(Made(folder, Fields(f"{folder / MANIFEST}", read_bundle(folder).manifest)))
        else:
            runs.append(read_run(folder))
    labels = distinct([*(run.folder for run in runs), *(made.folder for made in bundles)])
    for index, run in enumerate(runs):
        run.label, run.index = labels[index], index
    for made, label in zip(bundles, labels[len(runs) :], strict=True):
        made.label = label
        made.subjects = _subjects(made.manifest, runs)
    return Collected(runs, bundles, _groups(runs))


def _real(path: str | Path) -> Path:
    """Where a path leads, also one that is recorded and may be anything."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a zero byte in it
        return Path(path)


def distinct(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others."""
    parts = [_real(folder).parts for folder in folders]
    sizes = [1] * len(parts)
    while True:
        labels = ["/".join(path[-size:]) for path, size in zip(parts, sizes, strict=True)]
        twice = [index for index, label in enumerate(labels)
                 if labels.count(label) > 1 and sizes[index] < len(parts[index])]
        if not twice:
            return labels
        for index in twice:
            sizes[index] += 1


def _subjects(manifest: Fields, runs: Sequence[Run]) -> list[Subject]:
    by_folder = {_real(run.folder): run for run in runs}
    parity, origin, files = manifest.inside("parity"), manifest.inside("provenance"), manifest.named("files")
    adapters, reports = manifest.named("adapters"), parity.named("adapters")

    def run_of(source: str) -> Run | None:
        return by_folder.get(_real(source)) if source else None

    whole = "" if adapters else origin.text("source")
    found = [Subject("base" if adapters else "model", "base" if adapters else "model", parity.inside("base"), None,
                     whole, run_of(whole), Fields(origin.where, {} if adapters else origin.value))]
    for name, entry in adapters.items():
        source = entry.text("source") or (origin.text("source") if len(adapters) == 1 else "")
        size = files[entry.text("file")].number("size") if entry.text("file") in files else None
        found.append(Subject(name, "adapter", reports.get(name) or Fields(parity.where, {}), size, source,
                             run_of(source), entry))
    return found


def _groups(runs: Sequence[Run]) -> list[Group]:
    """By base and by what was measured; runs without any evaluation by what they were trained on."""
    groups: dict[tuple[object, ...], Group] = {}
    for run in runs:
        base = run.fingerprint or run.base
        if run.scores:
            lines: list[tuple[object, ...]] = sorted((score.name, score.amount or 0) for score in run.scores)
        else:
            lines = sorted((item.text("sha256"), item.text("name")) for item in run.record.rows("data"))
        key = (base, run.unit, bool(run.scores), *lines)
        groups.setdefault(key, Group([], bool(run.scores))).runs.append(run)
    return list(groups.values())
