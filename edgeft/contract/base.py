"""Find a base by what a user calls it: a folder, a hub id, or `starter`."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import UsageError
from .files import read_json

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def find_base(name: str) -> Path:
    """The folder of a base. A hub id is downloaded (no pickles, no code) unless such a folder exists.

    Raises UsageError if there is no such base.
    """
    if name == "starter":
        from edgeft.starter import MODEL

        return MODEL
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            what = "is a PEFT adapter, not a base" if (folder / "adapter_config.json").is_file() \
                else "has no config.json: it is no Hugging Face model folder"
            raise UsageError(f"base {name!r}: the folder {what}.")
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UsageError(f"base {name!r}: there is no such folder. A base is a Hugging Face model folder, "
                         "a hub id such as 'org/name', or 'starter'.")
    return _download(name)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"base {name!r}: there is no such folder, and downloading from the hub needs "
                         "`pip install 'edgeft[train]'`.") from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # offline, unknown id, no access: the hub's many ways of saying no
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"base {name!r}: there is no such folder here, and the hub did not give it ({reason})") \
            from None


def read_config(folder: Path) -> dict[str, object]:
    """A base's config.json."""
    return read_json(Path(folder) / "config.json")
