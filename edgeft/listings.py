"""`edgeft methods`, `devices` and `plugins`: what is there, and why something is not; tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeft import plugins
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.peft_types import PEFT_TYPES


@click.command("methods")
@click.option("--peft", is_flag=True, help="What becomes of each PEFT type at export.")
@click.option("--json", "as_json", is_flag=True)
def methods_command(peft: bool, as_json: bool) -> None:
    """Fine-tuning methods that can be trained."""
    if peft:
        fates = {name: str(fate) for name, fate in PEFT_TYPES.items()}
        print_json(fates) if as_json else print_table(list(fates.items()))
        return
    methods = plugins.host().methods
    rows = {name: {"summary": method.summary, "options": list(method.Options.__dataclass_fields__)}
            for name, method in sorted(methods.items())}
    print_json(rows) if as_json else print_table([(name, str(row["summary"])) for name, row in rows.items()])
    plugins.warn_about_broken()


@click.command("devices")
@click.argument("name", required=False)
@click.option("--detect", is_flag=True, help="Describe this machine as a device file.")
@click.option("--json", "as_json", is_flag=True)
def devices_command(name: str | None, detect: bool, as_json: bool) -> None:
    """Devices that can be exported for; with a NAME, its file."""
    if detect:
        if name or as_json:
            raise UsageError("--detect stands alone: it prints a device file for this machine.")
        from edgeft.detect import detect as describe_machine

        click.echo(describe_machine(), nl=False)
        return
    host = plugins.host()
    if name:
        host.device(name)  # checked before it is shown
        click.echo((Path(name) if name.endswith(".toml") else host.devices[name]).read_text(encoding="utf-8"), nl=False)
        return
    rows: dict[str, dict[str, str]] = {}
    for known in sorted(host.devices):
        try:
            device = host.device(known)
            rows[known] = {"verified": device.verified, "summary": device.summary}
        except EdgeftError as error:
            rows[known] = {"verified": "broken", "summary": str(error)}
    print_json(rows) if as_json else print_table([(key, row["verified"], row["summary"]) for key, row in rows.items()])
    plugins.warn_about_broken()


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True)
def plugins_command(as_json: bool) -> None:
    """Installed plugins, what each offers, and why a broken one is not used."""
    host = plugins.host()
    context = click.get_current_context()
    group: Any = context.find_root().command
    group.list_commands(context)  # that is when plugins add their commands
    rows = [{"name": plugin.name, "source": plugin.source, "methods": plugin.methods, "devices": plugin.devices,
             "commands": plugin.commands, "errors": plugin.errors} for plugin in host.plugins]
    if as_json:
        print_json({"plugins": rows})
        return
    print_table([(str(row["name"]), str(row["source"]),
             ", ".join([*row["methods"], *row["devices"], *row["commands"]]) or "-",
             "; ".join(f"BROKEN: {error}" for error in row["errors"]) or "ok")
            for row in rows])


def print_json(value: Any) -> None:
    """One JSON value to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows to stdout, every column but the last as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
