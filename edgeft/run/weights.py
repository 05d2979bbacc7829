"""The weights' own digest, computed beside the opening of the graphs: a file of numbers needs no parser to be safe."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import GRAPH_DATA, Bundle
from edgeft.contract.errors import EdgeftError
from edgeft.contract.opening import Refused, digest, open_inside


class WeightsCheck:
    """Hashes one file in a thread of its own; `wait` before anything that was computed with it is answered.

    onnxruntime opens the file by its name, so the file under that name must be the hashed one before and after.
    """

    def __init__(self, folder: Path, name: str, entry: dict[str, Any]) -> None:
        self.folder, self.name, self.entry = folder, name, entry
        self._found: tuple[str, tuple[int, ...]] | str = "was not read"
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._hash, name="weights-check", daemon=True)
            self._thread.start()

    def _hash(self) -> None:
        try:
            with open_inside(self.folder, self.name) as stream:
                before = _identity(os.fstat(stream.fileno()))
                self._found = digest(stream), before
        except (Refused, OSError) as error:
            self._found = str(error)

    def wait(self) -> None:
        """EdgeftError unless the file's digest is the declared one, and the file is still under its name, unchanged."""
        self.start()
        assert self._thread is not None
        self._thread.join()
        if isinstance(self._found, str):
            raise EdgeftError(f"{self.folder}: {self.name} {self._found}.")
        found, identity = self._found
        if found != self.entry["sha256"]:
            raise EdgeftError(f"{self.folder}: is not as it was exported\n  {self.name}  declared sha256 "
                              f"{self.entry['sha256'][:12]}  found {found[:12]}\nCopy it again, or export it again.")
        try:
            now = _identity(os.lstat(self.folder / self.name))
        except OSError as error:
            raise EdgeftError(f"{self.folder}: {self.name} is gone ({error.strerror}).") from None
        if now != identity:
            raise EdgeftError(f"{self.folder}: {self.name} was changed while it was open. Load the bundle again.")


def exported_weights(bundle: Bundle) -> WeightsCheck:
    """Of a bundle's weights as they were exported."""
    return WeightsCheck(bundle.folder, GRAPH_DATA, bundle.manifest["files"][GRAPH_DATA])


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
