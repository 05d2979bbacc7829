"""`edgeft sign`, `edgeft rollback`, and the flags that ask for signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edgeft.contract.errors import UsageError
from edgeft.listings import print_json
from edgeft.train_command import FOLDER


def key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--key PUBLIC`, any number of times."""
    return click.option("--key", "keys", type=FOLDER, multiple=True, metavar="PUBLIC.pub",
                        help="Refuse what this key (or another one given) has not signed.")(function)


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `install` asks of a bundle that comes."""
    function = click.option("--allow-rollback", is_flag=True,
                            help="Let a bundle with a lower --version take the place of one with a higher.")(function)
    function = click.option("--require-signature/--no-require-signature", "require", default=None,
                            help="Remember (or forget) that this place takes only what --key signed.")(function)
    return key_option(function)


@click.command("sign")
@click.argument("target", type=FOLDER, required=False, metavar="BUNDLE|ADAPTER.safetensors")
@click.option("--key", type=FOLDER, metavar="KEY", help="The private key to sign with.")
@click.option("--new-key", type=FOLDER, metavar="FILE", help="Make a key pair first: FILE, and FILE.pub for devices.")
@click.option("--json", "as_json", is_flag=True)
def sign_command(target: Path | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Sign a bundle with its adapters, or one adapter's file (Ed25519)."""
    from edgeft.run import signing

    if key and new_key:
        raise UsageError("--key names a key that there is, --new-key makes one: choose one.")
    if not new_key and not (target and key):
        raise UsageError("sign: needs BUNDLE --key KEY; `edgeft sign --new-key FILE` makes a key.")
    result: dict[str, Any] = {"key": signing.new_key(new_key)} if new_key else {}
    if target is not None:
        result |= signing.sign(target, key or new_key or Path())
    if as_json:
        print_json(result)
        return
    if new_key:
        click.echo(f"wrote {new_key}, which signs: keep it secret\n"
                   f"wrote {new_key}.pub, which checks: put it on devices (key {result['key']})")
    if target is not None:
        names = ", ".join(result["adapters"]) or "none"
        what = f"adapter {names}" if result["subject"] == "adapter" else f"the bundle and its adapters ({names})"
        click.echo(f"{target}: signed {what} by key {result['key']}")


@click.command("rollback")
@click.argument("place", type=FOLDER, metavar="DIR")
@click.option("--json", "as_json", is_flag=True)
def rollback_command(place: Path, as_json: bool) -> None:
    """Put the version back that stood in an installed place before; once more goes forward again."""
    from edgeft.run.rollback import rollback

    result = rollback(place)
    print_json(result) if as_json else click.echo(
        f"{place}: the version before is back (version {result['version']}, made {result['made']}); the one that "
        "made way is the previous one now")


def check_signatures(bundle: Path, keys: Sequence[Path]) -> dict[str, str]:
    """Who signed a bundle ("") and its adapters, by key id; empty without keys. EdgeftError if none of them did."""
    if not keys:
        return {}
    from edgeft.contract.bundle import read_bundle
    from edgeft.run.signing import check_bundle, public_keys

    return check_bundle(read_bundle(bundle), public_keys(keys))
