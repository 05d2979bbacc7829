"""`edgeft eval --compare`: its flags, what can be refused at once, and what is printed and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeft import plugins
from edgeft.contract.errors import UsageError
from edgeft.contract.files import write_json
from edgeft.listings import print_json
from edgeft.train_command import FOLDER

Command = TypeVar("Command", bound=Callable[..., Any])
OPTIONS = [
    click.option("--compare", is_flag=True, help="A run four ways on --device: float, merged and quantized, an adapter "
                                                 "beside the quantized base, and trained on the grid."),
    click.option("--device", metavar="NAME|FILE.toml", help="Of --compare: whose grid."),
    click.option("--answers", type=click.IntRange(0), help="Of --compare: prompts answered for exact match. [100]"),
    click.option("--work", type=FOLDER, help="Of --compare: keeps what is trained anew. [RUN.twins]"),
    click.option("--chart", type=FOLDER, metavar="FILE.svg", help="Of --compare: draw it here."),
    click.option("--out", type=FOLDER, metavar="FILE.json", help="Of --compare: write it here. [RUN/comparison.json]"),
]


def compare_options(command: Command) -> Command:
    """Give `eval` the flags of --compare."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def asks_to_compare(compare: bool, device: str | None, answers: int | None, **files: Path | None) -> bool:
    """Whether --compare is asked for; UsageError for its words without it."""
    given = [name for name, value in (("device", device), ("answers", answers), *files.items()) if value is not None]
    if given and not compare:
        raise UsageError(f"--{given[0]} is for --compare.")
    return compare


def compare_command(run: Path, data: Path | None, task: str | None, as_json: bool, *, device: str | None,
                    answers: int | None, work: Path | None, chart: Path | None, out: Path | None,
                    **not_for_it: Any) -> None:
    """Compare, write comparison.json, print."""
    given = [name for name, value in not_for_it.items() if value]
    if given:
        raise UsageError(f"--{given[0]} is not for --compare: it measures a run as it would stand on --device.")
    if not device or data is None:
        raise UsageError("--compare needs --device, the grid that the ways are compared on, and --data.")
    for flag, file in (("--chart", chart), ("--out", out)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"{flag} {file}: must be a file in a folder that is there.")
    target = plugins.host().device(device)
    from edgeft.compare import FILE, compare, describe, draw

    found = compare(run, data, target, host=plugins.host(), task=task, answers=100 if answers is None else answers,
                    work=work)
    write_json(out or run / FILE, found)
    if chart is not None:
        draw(chart, found)
    print_json(found) if as_json else click.echo(f"{describe(found)}\nwrote {out or run / FILE}")
