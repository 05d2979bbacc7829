"""`edgeft report`: one HTML page about runs and the bundles made of them."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft import plugins
from edgeft.contract.files import disk_errors, refuse_existing, write_text
from edgeft.train_command import FOLDER


@click.command("report")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="RUN|BUNDLE...")
@click.option("--out", type=FOLDER, metavar="FILE.html", help="The page to write. [report.html]")
@click.option("--json", "as_json", is_flag=True, help="Print the data of the page; write no page unless --out says so.")
def report_command(folders: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """One HTML page of runs and bundles: curves, forgetting, parity, sizes, how to make them again."""
    page = out or (None if as_json else Path("report.html"))
    if page is not None:
        refuse_existing(page)
    from edgeft.report.collect import collect
    from edgeft.report.page import json_text, render

    methods = plugins.host().methods
    found = collect(folders)
    if page is not None:
        text = render(found, methods)
        with disk_errors(page):
            page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, text)
    click.echo(json_text(found, methods) if as_json else
               f"wrote {page}: {found.counted}")
