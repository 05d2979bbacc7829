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

__all__ = ["Generation", "Model", "load"]


def load(bundle: str | Path, *, threads: int | None = None) -> Model:
    """Open a bundle folder; `threads` overrides its device file's."""
    from .model import Model

    return Model(bundle, threads=threads)


def __getattr__(name: str) -> Any:
    if name in ("Generation", "Model"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
