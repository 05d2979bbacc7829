"""`edgeft train METHOD`: one command per method, its flags made from the method's options; flags over TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft import options, plugins
from edgeft.contract import Method, TaskOptions
from edgeft.contract.errors import UsageError
from edgeft.train.launch import is_main
from edgeft.train.settings import TrainSettings

if TYPE_CHECKING:
    from edgeft.train.job import Job

FOLDER = click.Path(path_type=Path)
SHARED: list[click.Option] = [
    click.Option(["--base"], help="Base: a folder, a hub id, or starter."),
    click.Option(["--data"], multiple=True, metavar="[TASK=]D.jsonl[:weight]",
                 help="Training data; several make a mixture of tasks, named as their files unless told otherwise."),
    click.Option(["--template"], multiple=True, metavar="TASK=TEXT", help="A task's phrasing, with {prompt} in it."),
    click.Option(["--eval-data"], multiple=True, metavar="[TASK=]E.jsonl",
                 help="Evaluate on these, each with its own loss; with TASK, phrased as that task."),
    click.Option(["--held-out-task"], multiple=True, metavar="[TASK=]D.jsonl",
                 help="A task that is never trained on: its loss is measured before and after."),
    click.Option(["--probe"], metavar="P.jsonl", help="Text the base knew: what is forgotten is measured on it."),
    click.Option(["--pairs"], metavar="Z.jsonl", help='Lines of {"good", "bad"} sentences: how often the good one is '
                                                      "likelier, before and after."),
    click.Option(["--out"], type=FOLDER, required=True, help="The run folder to write."),
    click.Option(["--device"], metavar="NAME|FILE.toml", help="Train on this device's integer grid."),
    click.Option(["--config"], type=FOLDER, help="A TOML file with any of these options, and [tasks.NAME]; flags win."),
    click.Option(["--resume"], is_flag=True, help="Go on from the last checkpoint in --out."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print edgeft.json to stdout at the end."),
    *options.click_options(TrainSettings),
]
TEXTS = ("base", "probe", "pairs", "device")  # SHARED options that are one text each
TASKS = ("data", "template", "eval_data", "held_out_task")  # what the mixture is made of, beside [tasks.NAME]


class Methods(click.Group):
    """`edgeft train METHOD`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(plugins.host().methods)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        method = plugins.host().method(cmd_name)
        own = options.click_options(method.Options)
        taken = {flag for item in SHARED for flag in item.opts}
        clash = sorted(flag for item in own for flag in item.opts if flag in taken and flag.startswith("-"))
        if clash:
            raise UsageError(f"method {cmd_name!r} has options named as every method's: {', '.join(clash)}. "
                             "Its author must rename them.")
        return click.Command(cmd_name, params=[*own, *SHARED], help=method.summary,
                             callback=lambda **given: _run(method, given))


def _run(method: Method[Any], given: dict[str, Any]) -> None:
    out, resume, as_json = given.pop("out"), given.pop("resume"), given.pop("as_json")
    config = _toml(given.pop("config"))
    stored: dict[str, Any] = {}
    if resume:
        stored = _stored(out, method.name)
    else:
        _refuse_existing_run(out)
    earlier, tasks = _recorded(stored)
    mixture = [tasks, {"tasks": config.pop("tasks", None), **config}, {**given, "tasks": None}]
    job = _job(method, [earlier, config, given], mixture, out)
    if resume:
        from edgeft.train.job import refuse_changes

        refuse_changes(job, stored)
    from edgeft.train.loop import train

    record = train(job, resume=resume)
    if is_main():
        _print_run(out, record, as_json)


def job_again(method: Method[Any], stored: dict[str, Any], out: Path) -> Job:
    """A training as it was recorded, into another folder."""
    earlier, tasks = _recorded(stored)
    return _job(method, [earlier], [tasks], out)


def _recorded(stored: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run was asked for: a layer of options, and one of the mixture."""
    texts = {key: stored[key] for key in TEXTS if key in stored}
    return ({**texts, **stored.get("options", {}), **stored.get("settings", {})},
            {"tasks": stored.get("tasks"), "eval_data": stored.get("eval_data")})


def _job(method: Method[Any], layers: Sequence[dict[str, Any]], mixture: Sequence[dict[str, Any]],
         out: Path) -> Job:
    """All that was asked for, checked."""
    from edgeft.train.job import Job
    from edgeft.train.tasks import resolve_tasks

    who = f"edgeft train {method.name}"
    texts = {key: _text(layers, key, who) for key in TEXTS}
    known = set(method.Options.__dataclass_fields__)
    own = options.resolve(method.Options, *[{k: v for k, v in layer.items() if k in known} for layer in layers],
                          who=who)
    skipped = {*known, *TEXTS, *TASKS}
    settings = options.resolve(TrainSettings, *[{k: v for k, v in layer.items() if k not in skipped}
                                                for layer in layers], who=who)
    if not texts["base"]:
        raise UsageError(f"{who}: --base is missing.")
    tasks, eval_data = resolve_tasks(mixture, who)
    names = tuple(task.name for task in tasks if not task.held_out)
    if not names:
        raise UsageError(f"{who}: --data is missing.")
    if isinstance(own, TaskOptions):
        if own.tasks not in ((), names):
            raise UsageError(f"{who}: --tasks declared {', '.join(own.tasks)} found {', '.join(names)} in the "
                             "mixture. Leave it out.")
        own = options.resolve(method.Options, options.to_json(own), {"tasks": names}, who=who)
    device = plugins.host().device(texts["device"]) if texts["device"] else None
    return Job(method, own, settings, texts["base"], tasks, eval_data, texts["probe"], out, device,
               texts["pairs"])


def _text(layers: Sequence[dict[str, Any]], key: str, who: str) -> str:
    value = next((layer[key] for layer in reversed(layers) if layer.get(key) not in (None, "")), "")
    if not isinstance(value, str):
        raise UsageError(f"{who}: {key} must be text, found {value!r}")
    return value


def _stored(out: Path, name: str) -> dict[str, Any]:
    from edgeft.train.job import stored_settings

    stored = stored_settings(out)
    if stored.get("method") != name:
        raise UsageError(f"{out}: was started with method {stored.get('method')!r}, not {name!r}.")
    return stored


def _refuse_existing_run(out: Path) -> None:
    if (out / "settings.json").is_file() and not (out / "edgeft.json").is_file():
        raise UsageError(f"{out}: holds a run that has not ended. Go on with --resume, or remove it first.")
    if out.exists():
        raise UsageError(f"{out}: already exists. Choose another name, or remove it first.")


def _toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML ({error})") from None
    return {key.replace("-", "_"): value for key, value in table.items()}


def _print_run(out: Path, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from edgeft.contract.forgetting import describe_forgetting

    metrics = record["metrics"]
    for line in _loss_table(metrics):
        click.echo(line)
    for line in describe_forgetting(record["forgetting"]):
        click.echo(line)
    click.echo(f"{metrics['tokens_per_s']:,.0f} tokens/s, {metrics['seconds']:.0f} s, "
               f"peak {metrics['peak_mib']:,.0f} MiB")
    click.echo(f"wrote {out}")


def _loss_table(metrics: dict[str, Any]) -> list[str]:
    """Nats per completion token, or per example, before and after, per task; what was never trained on comes last."""
    base = metrics["eval_base"]
    measured = [(name, base.get(name, {}).get("loss"), found) for name, found in metrics["eval"].items()]
    measured += [(f"{name} (never trained on)", found["base_loss"], found)
                 for name, found in metrics["held_out"].items()]
    if not measured:
        return []
    classes = "accuracy" in measured[0][2]
    unit = "examples" if classes else "tokens"
    rows = [(f"loss per {'example' if classes else 'completion token'}", "base", "tuned", "change", unit,
             *(["accuracy"] if classes else []))]
    rows += [(name, f"{before:.3f}" if before is not None else "-", f"{found['loss']:.3f}",
              f"{found['loss'] - before:+.3f}" if before is not None else "-", f"{found[unit]:,}",
              *([f"{found['accuracy']:.1%}"] if classes else [])) for name, before, found in measured]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                  zip(row[1:], widths[1:], strict=True))]) for row in rows]
