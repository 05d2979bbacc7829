"""The flags of `export` and `add` that limit what an adapter may forget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeft.contract.budget import Budget
from edgeft.contract.errors import UsageError
from edgeft.train_command import FOLDER

Command = TypeVar("Command", bound=Callable[..., Any])
OPTIONS = [
    click.option("--forgetting-budget", type=float, metavar="NATS",
                 help="Ship the adapter at the largest scale that forgets at most this much per token of --probe."),
    click.option("--probe", type=FOLDER, metavar="P.jsonl", help="Of --forgetting-budget: text that the base knew."),
    click.option("--data", type=FOLDER, metavar="D.jsonl",
                 help="Of --forgetting-budget: tell the loss on these at that scale. [the run's own]"),
]


def budget_options(command: Command) -> Command:
    """Give a command the flags."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def read_budget(forgetting_budget: float | None, probe: Path | None, data: Path | None) -> Budget | None:
    """The budget that is asked for, if any; UsageError for words that do not belong together."""
    if forgetting_budget is None:
        if probe or data:
            raise UsageError(f"--{'probe' if probe else 'data'} is for --forgetting-budget.")
        return None
    if probe is None:
        raise UsageError("--forgetting-budget needs --probe: the text on which forgetting is measured.")
    budget = Budget(forgetting_budget, probe, data)
    budget.check_files()
    return budget
