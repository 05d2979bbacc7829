"""The base of an export: its folder, config, torch model, weights and tokenizer."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from edgeft.contract.base import find_base
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import Weights


@dataclass
class Base:
    """Everything about a base but its weights in memory: those are loaded for the oracle alone."""

    name: str
    folder: Path
    config: Any
    weights: Weights
    fingerprint: str
    model_class: type[PreTrainedModel]

    @property
    def tied(self) -> dict[str, str]:
        """Head tensors that are the embedding's, for bases that tie them."""
        if not getattr(self.config, "tie_word_embeddings", False):
            return {}
        keys = getattr(self.model_class, "_tied_weights_keys", None)
        return dict(keys) if isinstance(keys, Mapping) else {}

    @property
    def context(self) -> int:
        """Tokens that the base was made for."""
        declared = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
        return int(declared or 2048)

    @property
    def eos(self) -> list[int]:
        """Tokens that end an answer."""
        value = self.generation.get("eos_token_id", self.config.eos_token_id)
        return [] if value is None else [int(token) for token in (value if isinstance(value, list) else [value])]

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, or nothing."""
        try:
            return transformers.GenerationConfig.from_pretrained(self.folder, local_files_only=True).to_diff_dict()
        except OSError:
            return {}

    def load(self) -> PreTrainedModel:
        """The torch model, float32."""
        gc.collect()
        try:
            loaded: Any = self.model_class.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True,
                                                           output_loading_info=True)
        except (ValueError, RuntimeError, OSError) as error:
            raise EdgeftError(f"base {self.name!r}: transformers cannot load it "
                              f"({str(error).splitlines()[0]})") from None

        model, info = loaded
        lacking = sorted(map(str, info["missing_keys"]))
        if lacking:
            raise EdgeftError(f"base {self.name!r}: its weights lack {', '.join(lacking[:3])}.")
        model.eval()
        return cast(PreTrainedModel, model)

    def skeleton(self) -> PreTrainedModel:
        """The torch model without numbers: what its layers are."""
        with torch.device("meta"):
            return self.model_class(self.config)

    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise EdgeftError(f"base {self.name!r}: has no tokenizer ({str(error).splitlines()[0]})") from None
        if not tokenizer.is_fast:
            raise EdgeftError(f"base {self.name!r}: has only a slow tokenizer; the device needs a tokenizer.json.")
        tokenizer.backend_tokenizer.no_truncation()  # some folders keep what they were last called with
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer


def open_base(name: str) -> Base:
    """Find a base and tell what serves it; only causal decoders are exported."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|past_key_values)` is deprecated")  # PEFT 0.21 does so
    folder = find_base(name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"base {name!r}: transformers does not know it ({str(error).splitlines()[0]})") from None
    model_class = _model_class(name, config)
    weights = Weights(folder)
    return Base(name, folder, config, weights, weights.fingerprint(), model_class)


def _model_class(name: str, config: Any) -> type[PreTrainedModel]:
    """The class that the config names, if optimum's task registry says that it generates text."""
    from optimum.exporters.tasks import TasksManager

    named = (config.architectures or [""])[0]
    model_class = getattr(transformers, named, None)
    if model_class is None:
        raise UsageError(f"base {name!r}: architecture {named or 'missing'!r} is not one of transformers'.")
    try:
        task = TasksManager.infer_task_from_model(model_class)
    except (ValueError, KeyError) as error:
        raise UsageError(f"base {name!r}: no task is known for {named} ({str(error).splitlines()[0]})") from None
    if task != "text-generation" or config.is_encoder_decoder:
        kind = "encoder-decoder" if config.is_encoder_decoder else task
        raise UsageError(f"base {name!r}: {named} is for {kind}; only decoders that generate text are exported.")
    return model_class


def untie(model: PreTrainedModel) -> None:
    """Give a tied head weights of its own, for a change of one of the two alone."""
    head, embedding = cast(Any, model.get_output_embeddings()), cast(Any, model.get_input_embeddings())
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
