"""`edgeft genai`: a bundle's adapters for apps on ONNX Runtime GenAI."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.listings import print_json
from edgeft.train_command import FOLDER


@click.command("genai")
@click.argument("bundle", type=FOLDER)
@click.option("--json", "as_json", is_flag=True)
def genai_command(bundle: Path, as_json: bool) -> None:
    """Write a bundle's adapters also as .onnx_adapter, for apps on ONNX Runtime GenAI; again after each add."""
    from edgeft.run.genai import describe, write_genai_adapters

    report = write_genai_adapters(bundle)
    print_json(report) if as_json else click.echo(describe(bundle, report))
