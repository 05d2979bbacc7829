"""Write what was learned: a PEFT folder, a model folder, or plain named tensors; edgeft.json comes last."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from edgeft import __version__
from edgeft.contract.artifact import LEARNED, RECORD
from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import scratch, sync_folder, sync_tree, write_json
from edgeft.contract.tensors import write_tensors

from .base import Base
from .classify import head_parameters
from .job import FINAL

if TYPE_CHECKING:
    from .job import Job


def write_run(job: Job, base: Base, model: nn.Module, record: dict[str, Any]) -> None:
    """Finish the run folder; without edgeft.json it does not count as ended."""
    job.method.finish(model)
    with scratch(job.out / FINAL) as stage:
        try:
            _write_weights(stage, job, base, model)
        except SafetensorError as error:  # its I/O errors are no OSError; they end in "(os error 28)"
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
        for path in stage.iterdir():
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for the owner alone
        sync_tree(stage)
        for path in sorted(stage.iterdir()):
            path.replace(job.out / path.name)
    sync_folder(job.out)
    packages = ("torch", "transformers", "peft", "accelerate", "numpy")
    record["versions"] = {"edgeft": __version__, "python": platform.python_version(),
                          **{package: _version(package) for package in packages}}
    write_json(job.out / RECORD, record)
    shutil.rmtree(job.out / "checkpoints", ignore_errors=True)


def _write_weights(stage: Path, job: Job, base: Base, model: nn.Module) -> None:
    if isinstance(model, PeftModel):
        where = str(base.folder.resolve()) if base.id == "starter" else base.id
        model.peft_config[model.active_adapter].base_model_name_or_path = where
        model.save_pretrained(str(stage), save_embedding_layers=False)  # "auto" asks the hub for the base's vocabulary
        (stage / "README.md").unlink(missing_ok=True)  # PEFT's is an empty model card
        return
    head = {name: value.detach().float().cpu().numpy() for name, value in head_parameters(base.model).items()}
    learned = {**job.method.collect(model), **head}
    if not learned:
        raise EdgeftError(f"{job.method.name}: collect() returned nothing.")
    if {name for name, _ in base.model.named_parameters()} <= set(learned):
        base.model.save_pretrained(stage)
        base.hf_tokenizer.save_pretrained(stage)
        return
    write_tensors(stage / LEARNED, learned, {"method": job.method.name})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
