"""What a place on a device lets in: the signatures that it asks for, and no version below the one that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeft.contract.bundle import Bundle, read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.signature import Policy, read_policy, write_policy

from .signing import check_adapter, check_bundle, public_keys


@dataclass(frozen=True)
class Trust:
    """What one installation asks for, beside what its place asks for already.

    `keys`: files of public keys, one of which must have signed. `require`: True remembers these keys for the place,
    False forgets what was remembered. `allow_rollback`: a lower version may replace a higher one.
    """

    keys: Sequence[Path] = ()
    require: bool | None = None
    allow_rollback: bool = False

    def __post_init__(self) -> None:
        if self.require and not self.keys:
            raise UsageError("--require-signature needs --key PUBLIC: whose signature?")


ANYTHING = Trust()


def check_arrival(bundle: Bundle, place: Path, trust: Trust) -> None:
    """EdgeftError unless a bundle may take this place: signed as asked for, and not older than what is there."""
    for keys in _asked(place, trust):
        check_bundle(bundle, keys)
    installed = _version(place)
    if bundle.version < installed and not trust.allow_rollback:
        raise EdgeftError(f"{place}: version declared {bundle.version}  installed {installed}. `edgeft rollback "
                          f"{place}` goes back to the one before; --allow-rollback installs an older one.")


def check_adapter_arrival(path: Path, place: Path, trust: Trust = ANYTHING, *, name: str = "",
                          digest: str = "") -> None:
    """EdgeftError unless an adapter's file may come into a place: signed as asked for.

    Where that is to be remembered for the place, all that stands there must be signed, too.
    """
    for keys in _asked(place, trust):
        check_adapter(path, keys, name=name, digest=digest)
        if trust.require:
            check_bundle(read_bundle(place), keys)


def remember(place: Path, trust: Trust) -> None:
    """Keep what an installation said about signatures for the ones to come."""
    if trust.require is not None:
        write_policy(place, Policy(tuple(public_keys(trust.keys))) if trust.require else None)


def _asked(place: Path, trust: Trust) -> list[Sequence[str]]:
    """Sets of keys, of each of which one must have signed."""
    given = public_keys(trust.keys)
    stored = read_policy(place) if trust.require is None else None
    return [keys for keys in (stored.keys if stored else (), given) if keys]


def _version(place: Path) -> int:
    """Of what stands at a place; 0 for nothing, and for what cannot be read."""
    try:
        return read_bundle(place).version
    except EdgeftError:
        return 0
