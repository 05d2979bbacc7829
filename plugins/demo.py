"""`edgeft demo`: the whole way once, on the embedded default."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.hookspecs import hookimpl


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True,
              help="Folder for the run and the bundle; a demo that is there already is replaced.")
@click.option("--device", default="cpu-x86_64", show_default=True)
def demo(out: Path, device: str) -> None:
    """Train, export and run an adapter on the embedded default; about a minute on two cores."""
    from edgeft.demo import run_demo

    run_demo(out, device)


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(demo)
