"""The runner: a bundle on the device, with numpy, onnxruntime and tokenizers alone.

>>> from edgeft.run import load
>>> model = load("bundle")
>>> print(model.generate("turn on the kitchen light", adapters={"menu": 1.0}))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Generation, Model
    from .provider import Wanted

__all__ = ["Generation", "Model", "load"]


def load(bundle: str | Path, *, threads: int | None = None, memory: int | None = None, lookup: bool | None = None,
         keep_prompts: int = 64, provider: Wanted = None) -> Model:
    """Open a bundle folder; `threads` and `memory` (MiB that the process may take) override its device file's.

    `lookup`: draft tokens from what was there before, where that pays. Greedy answers stay the same in fp32, where
    it is the default; on integer grids near ties may fall otherwise, as they may in a batch.
    `keep_prompts`: MiB for keys and values of prompts that may come again; 0 keeps none.
    `provider`: another execution provider than the device file's, such as CPUExecutionProvider; with
    options of its own as (name, options).
    """
    from .model import Model

    return Model(bundle, threads=threads, memory=memory, lookup=lookup, keep_prompts=keep_prompts,
                 provider=provider)


def __getattr__(name: str) -> Any:
    if name in ("Generation", "Model"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
