"""Load a base for training: a pretrained folder, or only a config to start from at random."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from edgeft.contract.base import find_base
from edgeft.contract.chat import chat_renderer
from edgeft.contract.data import Render
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.heads import max_tokens
from edgeft.contract.shown import faithful
from edgeft.contract.tensors import Weights, has_weights

from .classify import check_config, load_classifier


@dataclass
class Base:
    """A base in memory, with what identifies it."""

    id: str
    folder: Path
    fingerprint: str  # empty when the weights are new
    model: PreTrainedModel
    tokenizer: Tokenizer
    hf_tokenizer: Any
    render: Render | None
    eos: int | None
    context: int
    labels: tuple[str, ...] = ()  # of a classifier

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)


def quiet() -> None:
    """Keep transformers' own progress bars and advice off the user's screen."""
    # PEFT 0.21 uses both
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|past_key_values)` is deprecated")
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def load_base(name: str, *, seed: int = 0, labels: Sequence[str] = ()) -> Base:
    """Load model, float32, and tokenizer; with a config alone, make random weights of this seed.

    With labels the model is a classifier of them.
    """
    quiet()
    folder = find_base(name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"base {name!r}: transformers does not know it ({str(error).splitlines()[0]})") from None
    check_config(name, config, labels)
    tokenizer = load_tokenizer(folder)
    fingerprint = ""
    try:
        if has_weights(folder):
            fingerprint = Weights(folder).fingerprint()
        torch.manual_seed(seed)
        if labels:
            pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
            model = load_classifier(name, folder, config, labels, pad)
        elif fingerprint:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True)
            model, info = loaded
            _check_complete(name, info)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, KeyError, RuntimeError) as error:
        raise EdgeftError(f"base {name!r}: transformers cannot load it ({str(error).splitlines()[0]})") from None
    return Base(
        id=name if name == "starter" or not Path(name).exists() else str(folder.resolve()),
        folder=folder, fingerprint=fingerprint, model=model, hf_tokenizer=tokenizer,
        tokenizer=tokenizer.backend_tokenizer, render=renderer(tokenizer), eos=tokenizer.eos_token_id,
        context=max_tokens(config.get_text_config()), labels=tuple(labels))


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """transformers draws what a file lacks at random, and says so where nobody looks."""
    lacking = sorted({*map(str, info["missing_keys"]), *(str(key[0]) for key in info["mismatched_keys"])})
    if lacking:
        raise EdgeftError(f"base {name!r}: its weights lack {len(lacking)} tensors, or hold them in other shapes: "
                          f"{', '.join(lacking[:3])}")


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer; EdgeftError if it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise EdgeftError(f"{folder}: has no tokenizer that transformers can load "
                          f"({str(error).splitlines()[0]})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise EdgeftError(f"{folder}: has only a slow tokenizer; a tokenizer.json is needed.")
    tokenizer.backend_tokenizer.no_truncation()  # some folders keep what they were last called with
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def renderer(tokenizer: Any) -> Render | None:
    """The tokenizer's chat template in the same sandbox that the runner uses."""
    if not isinstance(getattr(tokenizer, "chat_template", None), str):
        return None
    return faithful(chat_renderer(tokenizer.chat_template,
                                  {name: str(value) for name, value in tokenizer.special_tokens_map.items()}))
