"""What training left: a run folder of ours, anyone's PEFT folder, or a model folder.

    run of a PEFT method   adapter_config.json, adapter_model.safetensors, edgeft.json
    run of full tuning     a Hugging Face model folder, edgeft.json
    any other method       learned.safetensors, edgeft.json
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import EdgeftError, UsageError
from .files import read_json
from .prompt import PromptFormat
from .slots import Tensors
from .tensors import TensorFile

RECORD = "edgeft.json"
LEARNED = "learned.safetensors"
PEFT_CONFIG, PEFT_WEIGHTS, PEFT_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


@dataclass(frozen=True)
class Artifact:
    """One such folder; `kind` is "peft", "learned" or "model" (nothing beside the weights themselves)."""

    folder: Path
    kind: str
    record: dict[str, Any]

    @cached_property
    def peft_config(self) -> dict[str, Any]:
        """adapter_config.json; empty if the folder is not PEFT's."""
        return read_json(self.folder / PEFT_CONFIG) if self.kind == "peft" else {}

    @property
    def peft_type(self) -> str:
        """PEFT's name of the method, e.g. "LORA"."""
        return str(self.peft_config.get("peft_type", ""))

    @property
    def method(self) -> str:
        """Our name of the method that trained this; empty for folders that others made."""
        return str(self.record.get("method", ""))

    @property
    def base(self) -> str:
        """What the folder calls its base; empty if it does not say."""
        recorded = self.record.get("base", {}).get("id")
        return str(recorded or self.peft_config.get("base_model_name_or_path") or "")

    @property
    def base_fingerprint(self) -> str:
        """The base's fingerprint as recorded in training; empty for folders that others made."""
        return str(self.record.get("base", {}).get("fingerprint") or "")

    @property
    def prompt(self) -> PromptFormat:
        """How prompts were joined to completions in training; raw for folders that others made."""
        return PromptFormat.from_json(self.record.get("prompt"))

    def learned(self) -> Tensors:
        """What was learned, named after base modules (PEFT's own prefix taken off)."""
        path = self.folder / (PEFT_WEIGHTS if self.kind == "peft" else LEARNED)
        if not path.is_file():
            pickled = self.folder / "adapter_model.bin"
            raise EdgeftError(f"{path}: is not there." + (
                f" {pickled.name} is pickled, which can run code when opened: save it again with "
                "safe_serialization=True." if pickled.is_file() else ""))
        file = TensorFile(path)
        return {name.removeprefix(PEFT_PREFIX): file[name] for name in file}


def read_artifact(folder: Path) -> Artifact:
    """Tell what kind of folder this is; UsageError if it is none of them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder.")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    ours = (folder / "settings.json").is_file() or ((folder / "checkpoints").is_dir() and not (
        folder / "config.json").is_file())
    if ours and not record:  # its weights may be there already: edgeft.json comes last
        raise UsageError(f"{folder}: this training has not ended. Go on with "
                         f"`edgeft train ... --out {folder} --resume`.")
    if (folder / PEFT_CONFIG).is_file():
        return Artifact(folder, "peft", record)
    if (folder / LEARNED).is_file() and record:
        return Artifact(folder, "learned", record)
    if (folder / "config.json").is_file():
        return Artifact(folder, "model", record)
    if (folder / "bundle.json").is_file():
        raise UsageError(f"{folder}: is a bundle already. `edgeft run {folder}` runs it.")
    raise UsageError(f"{folder}: is neither a run of edgeft, nor a PEFT folder (adapter_config.json), nor a "
                     "Hugging Face model folder (config.json).")
