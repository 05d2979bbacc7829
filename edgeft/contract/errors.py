"""Errors that a user can act on: who, declared against found, what to do. Never a traceback."""

from __future__ import annotations


class EdgeftError(Exception):
    """The work failed: the message is for the user as it stands (exit code 1)."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(EdgeftError):
    """The words of the call are off: an unknown name, a value out of range, a missing option (exit code 2)."""

    exit_code = 2


class CannotLower(EdgeftError):
    """A method cannot express what it learned as slots of a graph.

    `reason` says why, `way_out` what the user can do instead (often: "export with --merge").
    """

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(f"{reason}\n{way_out}" if way_out else reason)
        self.reason = reason
        self.way_out = way_out


class Faults:
    """Every fault of one subject, collected before anything is raised.

    >>> faults = Faults("menu.safetensors: cannot be loaded into bundle 'kitchen'")
    >>> faults.add("base fingerprint", declared="3f9a", found="77c2")
    >>> faults.raise_if_any("Train it on this base.")
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.lines: list[str] = []

    def add(self, what: str, *, declared: object = None, found: object = None) -> None:
        """Note one fault; with `declared` or `found` the two are set side by side."""
        if declared is not None or found is not None:
            what = f"{what}  declared {declared}  found {found}"
        self.lines.append(what)

    def raise_if_any(self, advice: str = "", error: type[EdgeftError] = EdgeftError, *, most: int = 12) -> None:
        """Raise one error with what was noted, the first `most` of it in full; return if there was nothing."""
        if not self.lines:
            return
        shown = self.lines[:most]
        if len(self.lines) > len(shown):
            shown.append(f"... and {len(self.lines) - len(shown)} more")
        body = "\n".join(f"  {line}" for line in shown)
        raise error(f"{self.subject}\n{body}" + (f"\n{advice}" if advice else ""))


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ' Did you mean ...?' for a word close to a known one, and the known ones otherwise."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(name) for name in close)}?"
    return f" Known: {', '.join(sorted(known))}." if known else ""


def printable(text: str) -> str:
    """Text with every control character but line breaks and tabs written out.

    Names in messages may be a stranger's, and a terminal obeys what is in them.
    """
    return "".join(character if character.isprintable() or character in "\n\t" else
                   character.encode("unicode_escape").decode() for character in text)
