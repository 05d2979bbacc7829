"""`edgeft eval --compare`: one training four ways on a device, measured by the runner: what the grid costs each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.contract import TaskOptions
from edgeft.contract.artifact import Artifact, read_artifact
from edgeft.contract.bundle import MANIFEST, read_bundle
from edgeft.contract.data import kind_of, read_records
from edgeft.contract.device import Device
from edgeft.contract.errors import CannotLower, UsageError
from edgeft.contract.files import scratch
from edgeft.contract.grid import BITS

from .twin import asked_for, check_base, twin_of

if TYPE_CHECKING:
    from edgeft.plugins import Host

FLOAT, ROUNDED = "float merged", "merged, then quantized"
BESIDE, ON_GRID = "quantized base, adapter trained on float", "trained on the grid"
WAYS = (FLOAT, ROUNDED, BESIDE, ON_GRID)
SHORT = dict(zip(WAYS, ("float, merged", "merged, quantized", "quantized + float adapter", "edgeft: on the grid"),
                 strict=True))
FILE = "comparison.json"
SPEED_TOKENS, ROWS = 64, 16  # of a prompt and of an answer that are timed; prompts answered at once


@dataclass(frozen=True)
class Question:
    """What every way is measured on."""

    data: Path
    records: Sequence[dict[str, Any]]
    task: str | None
    answers: int  # how many prompts are answered to be compared; 0: none

    @property
    def kind(self) -> str:
        return kind_of(self.records[0])


def compare(run: Path, data: Path, device: Device, *, host: Host, task: str | None = None, answers: int = 100,
            work: Path | None = None) -> dict[str, Any]:
    """Make and measure the four ways of a run; `work` keeps what had to be trained anew. As in comparison.json."""
    artifact = _checked(run, device)
    question = Question(data, read_records(data), task, answers)
    check_base(artifact)
    if artifact.record and artifact.kind != "model":
        asked_for(artifact)  # what keeps a twin from being trained is told before minutes are spent
    work = work or run.resolve().with_name(f"{run.resolve().name}.twins")
    rows: dict[str, dict[str, Any]] = {}
    impossible: dict[str, str] = {}
    with scratch(work / "bundles") as folder:
        shop = _Workshop(artifact, device, host, work, folder, question)
        shop.merged(rows, impossible)
        shop.beside(rows, impossible)
    if not rows:
        raise UsageError(f"{run}: there is no way to put it on {device.name}: {next(iter(impossible.values()))}.")
    return {"run": str(run.resolve()), "device": device.name, "quant": device.graph.quant, "block": device.graph.block,
            "data": str(data.resolve()), "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": list(rows.values()), "impossible": impossible, "recovered": recovered(rows)}


def _checked(run: Path, device: Device) -> Artifact:
    if (run / MANIFEST).is_file():
        raise UsageError(f"{run}: is a bundle, and --compare makes bundles of a run. Give the run that it came from.")
    if device.graph.quant not in BITS:
        raise UsageError(f"{device.name}: runs {device.graph.quant}, so there is no grid that anything could lose on. "
                         f"--compare is for devices of {' or '.join(BITS)}.")
    return read_artifact(run)


def recovered(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Share of what merging and then quantizing loses that training on the grid wins back; None if nothing is lost."""
    if not {FLOAT, ROUNDED, ON_GRID} <= rows.keys():
        return None
    best, lossy, ours = (float(rows[way]["loss"]) for way in (FLOAT, ROUNDED, ON_GRID))
    return (lossy - ours) / (lossy - best) if lossy > best else None


@dataclass
class _Workshop:
    """Where the bundles of one comparison are made and measured."""

    artifact: Artifact
    device: Device
    host: Host
    work: Path
    folder: Path
    question: Question

    @property
    def float_run(self) -> Path:
        """The run on float: itself or its twin."""
        return self.artifact.folder if self.artifact.kind == "model" or not self.artifact.record else \
            twin_of(self.artifact, None, self.work, self.host)

    def export(self, place: str, /, **how: Any) -> Path:
        """A bundle of the run on float; CannotLower where the method has no such way."""
        from edgeft.export.bundle import export

        export(self.float_run, self.device, self.folder / place, host=self.host, task=self._learned_for, **how)
        return self.folder / place

    def merged(self, rows: dict[str, dict[str, Any]], impossible: dict[str, str]) -> None:
        """A model of its own, in float and on the grid."""
        for way, quant in ((FLOAT, "fp32"), (ROUNDED, self.device.graph.quant)):
            try:
                bundle = self.export(quant, merge=self.artifact.kind != "model", quant=quant)
            except CannotLower as error:
                impossible[way] = error.reason
            else:
                rows[way] = measure(way, bundle, {}, self.question)

    def beside(self, rows: dict[str, dict[str, Any]], impossible: dict[str, str]) -> None:
        """An adapter beside the base on its grid, trained on float and on that grid."""
        from edgeft.export.bundle import add

        try:
            if self.artifact.kind == "model":
                raise CannotLower(f"{self.artifact.method or 'a whole model'}: changes the base's own weights, so no "
                                  "adapter stands beside a base on its grid")
            if not self.device.graph.slots:
                raise CannotLower(f"{self.device.name}: takes no adapters beside the base")
            bundle = self.export("beside", name="float")
        except CannotLower as error:
            impossible[BESIDE] = impossible[ON_GRID] = error.reason
            return
        rows[BESIDE] = measure(BESIDE, bundle, {"float": 1.0}, self.question)
        if not self.artifact.record:
            impossible[ON_GRID] = f"{self.artifact.folder}: does not record how it was trained"
            return
        run = twin_of(self.artifact, self.device, self.work, self.host)
        add(bundle, run, "grid", host=self.host, task=self._learned_for)
        rows[ON_GRID] = measure(ON_GRID, bundle, {"grid": 1.0}, self.question)

    @property
    def _learned_for(self) -> str | None:
        """The task to export, of methods that learn something for each."""
        method = self.host.methods.get(self.artifact.method)
        return self.question.task if method is not None and issubclass(method.Options, TaskOptions) else None


def measure(way: str, bundle: Path, used: Mapping[str, float], question: Question) -> dict[str, Any]:
    """One row: loss on the data, task metric, size of what a device needs for it, and speed."""
    from edgeft.run.evaluate import evaluate

    found = evaluate(bundle, question.data, None, used, question.task)
    files = read_bundle(bundle).manifest["files"]
    mine = {f"adapters/{name}.safetensors" for name in used}
    size = sum(entry["size"] for name, entry in files.items() if not name.startswith("adapters/") or name in mine)
    metric, speed = None, None
    if "accuracy" in found:
        metric = {"name": "accuracy", "value": found["accuracy"]}
    else:
        speed = _decode(bundle, used)
        if question.kind == "pair" and question.answers:
            metric = {"name": "exact match", "value": exact_match(bundle, used, question)}
    return {"way": way, "loss": found["loss"], "tokens": found.get("tokens", found.get("examples")),
            "size_mib": round(size / 2**20, 3), "decode_tokens_per_s": speed, "metric": metric}


def _decode(bundle: Path, used: Mapping[str, float]) -> float:
    from edgeft.run.bench import bench

    tokens = min(SPEED_TOKENS, read_bundle(bundle).context // 4)
    return float(bench(bundle, used, prompt_tokens=tokens, new_tokens=tokens, batch=0)["decode"])


def exact_match(bundle: Path, used: Mapping[str, float], question: Question) -> float:
    """Share of the first prompts whose greedy answer is the line's completion, spaces at the ends aside."""
    from edgeft.run import load

    model = load(bundle)
    lines = question.records[: question.answers]
    longest = max(len(model.tokenizer.encode(line["completion"]).ids) for line in lines) + 2
    equal = 0
    for start in range(0, len(lines), ROWS):
        part = lines[start : start + ROWS]
        answers = model.batch([line["prompt"] for line in part], adapters=[used] * len(part), max_tokens=longest,
                              temperature=0, task=question.task)
        equal += sum(answer.text.strip() == line["completion"].strip()
                     for answer, line in zip(answers, part, strict=True))
    return equal / len(lines)


def describe(found: Mapping[str, Any]) -> str:
    """The comparison for a person."""
    rows = found["rows"]
    metric = next((row["metric"]["name"] for row in rows if row["metric"]), None)
    table = [("", "loss", *([metric] if metric else []), "MiB", "tokens/s")]
    table += [(row["way"], f"{row['loss']:.4f}", *([f"{row['metric']['value']:.1%}"] if metric else []),
               f"{row['size_mib']:,.2f}", f"{row['decode_tokens_per_s']:,.0f}" if row["decode_tokens_per_s"] else "-")
              for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                    zip(line[1:], widths[1:], strict=True))]) for line in table]
    lines += [f"{way}: impossible ({reason})" for way, reason in found["impossible"].items()]
    return "\n".join([f"{found['device']}: {found['quant']}, block {found['block']}; {found['data']}, "
                      f"{rows[0]['tokens']:,} tokens", *lines, _verdict(found)])


def _verdict(found: Mapping[str, Any]) -> str:
    """How much of what merging and quantizing loses is won back, in one line."""
    losses = {row["way"]: row["loss"] for row in found["rows"]}
    if not {FLOAT, ROUNDED, ON_GRID} <= losses.keys():
        return "what training on the grid recovers cannot be told: it takes the float, merged and grid ways"
    lost = losses[ROUNDED] - losses[FLOAT]
    if found["recovered"] is None:
        return f"merging and then quantizing loses nothing here ({lost:+.4f} nats), so there is nothing to recover"
    return f"training on the grid recovers {found['recovered']:.0%} of the {lost:.4f} nats that merging and then " \
           "quantizing loses"


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Write the comparison as a bar chart."""
    from edgeft.run.chart import write_chart

    rows = found["rows"]

    def bars(key: str) -> list[tuple[str, float]]:
        return [(SHORT[row["way"]], row[key]) for row in rows if row[key] is not None]

    metrics = [(SHORT[row["way"]], 100 * row["metric"]["value"]) for row in rows if row["metric"]]
    name = next((row["metric"]["name"] for row in rows if row["metric"]), "")
    panels = [("loss, nats per token", bars("loss")), (f"{name}, %", metrics), ("size, MiB", bars("size_mib")),
              ("decode, tokens per second", bars("decode_tokens_per_s"))]
    write_chart(path, f"{Path(found['run']).name}: what {found['quant']} costs, by the way it is made",
                f"{found['device']}, block {found['block']}, on {Path(found['data']).name}",
                [panel for panel in panels if panel[1]])
