"""`edgeft install`: a bundle, or what `edgeft pack` wrote, verified and prepared for this very machine."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.contract.errors import UsageError
from edgeft.listings import print_json
from edgeft.train_command import FOLDER
from edgeft.trust_commands import trust_options


@click.command("install")
@click.argument("bundle", type=FOLDER, metavar="BUNDLE|FILE.edgeft")
@click.option("--to", type=FOLDER, metavar="DIR", help="Put it there; what stood there is kept as DIR.previous. Of a "
              "packed adapter: the bundle that it goes into.")
@click.option("--remove", is_flag=True, help="Take the prepared weights away again.")
@trust_options
@click.option("--json", "as_json", is_flag=True)
def install_command(bundle: Path, to: Path | None, remove: bool, keys: tuple[Path, ...], require: bool | None,
                    allow_rollback: bool, as_json: bool) -> None:
    """Verify a bundle and prepare its weights for this very machine: mapped, and shared by processes.

    A file that `edgeft pack` wrote is unpacked first: a bundle to a folder, an adapter into the bundle at --to.
    """
    if remove:
        _remove(bundle, to, as_json)
        return
    from edgeft.run.trust import Trust

    trust = Trust(keys, require, allow_rollback)
    if bundle.is_file() and to is not None:
        from edgeft.run.unpack import holds_adapter

        if holds_adapter(bundle):
            from edgeft.run import install_adapter

            put = install_adapter.install_adapter(bundle, to, trust)
            print_json(put) if as_json else click.echo(install_adapter.describe(put))
            return
    from edgeft.run.install import describe, install

    result = install(bundle, to, trust)
    print_json(result) if as_json else click.echo(describe(result))


def _remove(bundle: Path, to: Path | None, as_json: bool) -> None:
    from edgeft.run.install import remove_prepared

    if to is not None:
        raise UsageError("--remove takes prepared weights away, --to puts a bundle somewhere: choose one.")
    removed = remove_prepared(bundle)
    text = "removed the prepared weights" if removed else "had no prepared weights"
    print_json({"folder": str(bundle), "removed": removed}) if as_json else click.echo(f"{bundle}: {text}")
