"""What the page says in sentences: what stands out, and what was not measured and how it would be."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from . import pictures, tables
from .collect import Collected, Group, Made
from .format import fixed, percent, signed
from .runs import Run

MEASURE = "edgeft eval {run} --data {data} --probe {probe}"


@dataclass(frozen=True)
class Missing:
    """Something that is not on the page: of which runs, why, and the command that would measure it."""

    what: str
    of: list[str]
    command: str = ""


def glance(found: Collected) -> list[str]:
    """The findings in a sentence each."""
    said = []
    for group in found.groups:
        said += _of_group(group, named=len(found.groups) > 1)
    for run in found.runs:
        if run.comparison:
            share = tables.recovered(tables.losses_of(run.comparison), tables.GRID)
            if share is not None:
                said.append(f"{run.label}: training on the grid recovers {percent(share)} of what merging and then "
                            "quantizing loses.")
    if found.bundles:
        said += _of_bundles(found.bundles)
    return said


def _of_group(group: Group, *, named: bool) -> list[str]:
    start = f"{group.name}: " if named else ""
    scored = [run for run in group.runs if run.score]
    said = []
    if len(scored) > 1:
        best = min(scored, key=lambda run: run.score.loss if run.score else 0.0)
        assert best.score is not None
        said.append(f"{start}{best.label} has the lowest evaluation loss, {fixed(best.score.loss)}"
                    + (f" (the base has {fixed(best.score.before)})." if best.score.before is not None else "."))
    for trade in pictures.trades(group):
        if len(trade.runs) < 2:
            continue
        least = trade.kept[0]  # the front is in the order of what was forgotten
        assert least.forgetting is not None
        amount = least.forgetting.value if least.forgetting.value is not None else least.forgetting.own.number("kl")
        said.append(f"{start}{least.label} forgets least {trade.name}, {signed(amount)} nats per token; on the Pareto "
                    f"front: {_list([run.label for run in trade.kept])}.")
    return said


def _of_bundles(bundles: Sequence[Made]) -> list[str]:
    below, unknown = [], []
    for made in bundles:
        for subject in made.subjects:
            proof = subject.report.inside("exact_activations") or subject.report
            equal, prompts = proof.number("greedy_equal"), proof.number("prompts")
            if equal is None or prompts is None:
                unknown.append(f"{made.label} ({subject.name})")
            elif equal < prompts:
                below.append(f"{made.label} ({subject.name}): {equal:g} of {prompts:g}")
    if unknown:
        return [f"No parity is recorded for {_list(unknown)}."]
    if below:
        return [f"Greedy answers equal to torch's: {'; '.join(below)}; of every other subject all."]
    who = {1: "The bundle gives", 2: "Both bundles give"}.get(len(bundles), f"All {len(bundles)} bundles give")
    return [f"{who} every greedy answer that torch gives on the same weights."]


def missing(found: Collected) -> list[Missing]:
    """What is not known, said once for all the runs that lack it."""
    runs = found.runs
    exported = {id(subject.run) for made in found.bundles for subject in made.subjects if subject.run}
    checks = [
        ("No evaluation set, so no loss before and after. train --eval-data, or more data for --holdout, gives one",
         [run for run in runs if not run.scores], "edgeft eval {run} --data {data}"),
        ("No metrics.jsonl, so no training curve", [run for run in runs if not run.curve], ""),
        ("metrics.jsonl has lines that cannot be read, which were left out", [run for run in runs if run.unread], ""),
        ("Forgetting was not measured. train --probe records it, this measures it",
         [run for run in runs if run.forgetting is None and run.unit == "token"],
         MEASURE),
        ("The four ways to a device were not compared", [run for run in runs if not run.comparison and _on_base(run)],
         "edgeft eval {run} --data {data} --compare --device {device}"),
        ("No bundle of these was given; name its folder beside the run's",
         [run for run in runs if id(run) not in exported],
         "edgeft export {run} --device {device} --out bundle"),
        ("Parameters that learn were not recorded by the version that made it",
         [run for run in runs if run.metrics.number("trained_parameters") is None], "")]
    return [Missing(what, [run.label for run in lacking], command(pattern, lacking))
            for what, lacking, pattern in checks if lacking]


def _on_base(run: Run) -> bool:
    """Whether the base stays as it is beside what this learned, so that there are four ways at all."""
    return run.unit == "token" and run.method != "full"


def command(pattern: str, runs: Sequence[Run]) -> str:
    """A command, spelt out for the first of the runs."""
    run = runs[0]
    words = {"run": str(run.folder), "device": run.record.text("device") or "cpu-x86_64",
             "data": next(iter(run.record.texts("eval_data")), "E.jsonl"),
             "probe": run.record.text("probe") or "known-text.jsonl"}
    return pattern.format(**{name: shlex.quote(word) for name, word in words.items()})


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
