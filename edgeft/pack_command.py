"""`edgeft pack`: a bundle, its base or one adapter as one file, to be moved and installed elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.listings import print_json
from edgeft.train_command import FOLDER


@click.command("pack")
@click.argument("bundle", type=FOLDER)
@click.option("--out", type=FOLDER, metavar="FILE", help="[BUNDLE.edgeft, or BUNDLE.NAME.edgeft of an adapter]")
@click.option("--adapter", metavar="NAME", help="This adapter alone, to be installed beside its base.")
@click.option("--without-adapters", is_flag=True, help="The base alone.")
@click.option("--json", "as_json", is_flag=True)
def pack_command(bundle: Path, out: Path | None, adapter: str | None, without_adapters: bool, as_json: bool) -> None:
    """Write a bundle, its base or one adapter as one file; equal bundles make equal files."""
    from edgeft.run.pack import describe, pack

    result = pack(bundle, out, adapter=adapter, without_adapters=without_adapters)
    print_json(result) if as_json else click.echo(describe(result))
