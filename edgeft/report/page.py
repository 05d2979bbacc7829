"""The page: all that was collected, as JSON and as one HTML file with nothing outside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeft import __version__
from edgeft.contract import Method
from edgeft.contract.svg import Panel, clean

from . import charts, pictures, reproduce, tables
from .collect import Collected, Group, Made
from .fields import Fields
from .runs import Run, smooth, thin
from .words import MEASURE, command, glance, missing

MOST_PROMPTS = 4  # of a run's data that are shown


def render(found: Collected, methods: Mapping[str, Method[Any]]) -> str:
    """The HTML of the page."""
    environment = Environment(loader=PackageLoader("edgeft.report", ""), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=_clean)
    return environment.get_template("page.html.j2").render(
        version=__version__, made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), found=found,
        glance=glance(found), missing=missing(found), runs=tables.runs(found.runs),
        groups=[_group(group) for group in found.groups], evaluations=tables.evaluations(found.runs),
        forgetting=tables.forgetting(found.runs),
        bundles=tables.bundles(found.bundles), parity=tables.parity(found.bundles),
        comparisons=[(run, tables.comparison(run.comparison), _comparison_bars(run, run.comparison))
                     for run in found.runs if run.comparison],
        recipes=[_recipe(run, methods) for run in found.runs],
        exports=[(made, [reproduce.shown(words) for words in reproduce.export_commands(made)])
                 for made in found.bundles], swatch=_swatch)


def _clean(value: Any) -> Any:
    """What no document may hold is replaced in every text, wherever it comes from."""
    return clean(str(value)) if isinstance(value, (str, Path)) and not isinstance(value, Markup) else value


def _swatch(run: Run) -> Markup:
    """A run's mark as the charts draw it."""
    return Markup(f'<svg class="swatch" viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">'
                  f'{charts.mark(0, 0, run.index, 5.5)}</svg>')


def _group(group: Group) -> dict[str, Any]:
    unmeasured = [run for run in group.runs if run.forgetting is None]
    return {"name": group.name, "unit": group.unit, "pictures": [_safe(picture) for picture in pictures.curves(group)],
            "trades": [_safe(trade.picture) for trade in pictures.trades(group) if trade.picture],
            "unmeasured": unmeasured, "measure": command(MEASURE, unmeasured) if unmeasured else ""}


def _safe(picture: pictures.Picture) -> dict[str, Any]:
    return {"name": picture.name, "note": picture.note, "markup": Markup(picture.markup)}


def _comparison_bars(run: Run, comparison: Fields) -> Markup:
    losses, rows = tables.losses_of(comparison), comparison.rows("rows")
    loss: Panel = ("loss, nats per token", list(losses.items()))
    if tables.FLOAT in losses:
        least = losses[tables.FLOAT]
        loss = ("loss above float merged, nats per token",
                [(way, value - least) for way, value in losses.items() if way != tables.FLOAT])
    panels: list[Panel] = [loss]
    for name, key in (("size, MiB", "size_mib"), ("decode, tokens per second", "decode_tokens_per_s")):
        panels.append((name, [(row.text("way"), value) for row in rows if (value := row.number(key)) is not None]))
    panels = [panel for panel in panels if panel[1]]
    said = "; ".join(f"{name}: " + ", ".join(f"{way} {value:.4g}" for way, value in values) for name, values in panels)
    return Markup(charts.bars(panels, f"Four ways to the same device: {run.label}", said,
                              lambda way: "ours" if way == tables.GRID else "theirs"))


def _recipe(run: Run, methods: Mapping[str, Method[Any]]) -> dict[str, Any]:
    """How to make a run again."""
    versions = run.record.inside("versions").value
    return {"run": run, "command": reproduce.shown(reproduce.train_command(run, methods)),
            "unknown": reproduce.unknown_options(run, methods), "data": tables.data(run),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
            "seed": run.record.inside("settings").number("seed"),
            "prompts": run.record.texts("samples")[:MOST_PROMPTS]}


def to_json(found: Collected, methods: Mapping[str, Method[Any]]) -> dict[str, Any]:
    """The data of the page."""
    groups = [(group, pictures.trades(group)) for group in found.groups]
    return {"edgeft": __version__, "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "runs": [_run_json(run, methods) for run in found.runs],
            "groups": [{"name": group.name, "runs": [run.label for run in group.runs],
                        "pareto": [{"measured": trade.name, "runs": [run.label for run in trade.runs],
                                    "front": [run.label for run in trade.kept]} for trade in trades]}
                       for group, trades in groups],
            "bundles": [_bundle_json(made) for made in found.bundles],
            "glance": glance(found), "missing": [asdict(note) for note in missing(found)]}


def _run_json(run: Run, methods: Mapping[str, Method[Any]]) -> dict[str, Any]:
    metrics = run.metrics
    numbers = ("trained_parameters", "parameters", "steps", "tokens", "tokens_per_s", "seconds", "peak_mib",
               "learning_rate")
    return {"run": run.label, "folder": str(run.folder), "method": run.method, "base": run.base,
            "base_fingerprint": run.fingerprint or None, "grid": run.grid or None,
            **{name: metrics.number(name) for name in numbers},
            "eval": [asdict(score) for score in run.scores], "held_out": [asdict(score) for score in run.held_out],
            "forgetting": run.forgetting.fields.value if run.forgetting else None,
            "comparison": run.comparison.value if run.comparison else None,
            "curves": {"training": thin(smooth(run.curve)), "evaluation": run.evals, "forgetting": run.forgot},
            "command": reproduce.train_command(run, methods)}


def _bundle_json(made: Made) -> dict[str, Any]:
    manifest = made.manifest
    return {"bundle": made.label, "folder": str(made.folder), "device": manifest.inside("device").text("name"),
            "quant": manifest.inside("quant").value, "bytes": made.size,
            "memory": manifest.inside("memory").value,
            "subjects": [{"name": subject.name, "kind": subject.kind, "source": subject.source or None,
                          "run": subject.run.label if subject.run else None, "parity": subject.report.value}
                         for subject in made.subjects],
            "commands": reproduce.export_commands(made)}


def json_text(found: Collected, methods: Mapping[str, Method[Any]]) -> str:
    """The same as text; names of folders may hold bytes that are no text, so everything else than ASCII is escaped."""
    return json.dumps(to_json(found, methods), indent=2)
