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
from edgeft.contract.heads import ENCODERS, config_labels, layout, max_tokens
from edgeft.contract.tensors import Weights

from .weights import EncoderWeights


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
        if self.encodes:
            return {}
        classifies = self.task == "text-classification"  # it lacks the head of words: the graph's is cut off again
        if not classifies and not getattr(self.config, "tie_word_embeddings", False):
            return {}
        keys = getattr(self.generator if classifies else self.model_class, "_tied_weights_keys", None)
        return dict(keys) if isinstance(keys, Mapping) else {}

    @property
    def context(self) -> int:
        """Tokens that the base was made for."""
        return max_tokens(self.config)

    @property
    def eos(self) -> list[int]:
        """Tokens that end an answer."""
        value = self.generation.get("eos_token_id", getattr(self.config, "eos_token_id", None))
        return [] if value is None else [int(token) for token in (value if isinstance(value, list) else [value])]

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, or nothing."""
        try:
            return transformers.GenerationConfig.from_pretrained(self.folder, local_files_only=True).to_diff_dict()
        except OSError:
            return {}

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder: no cache, no next token."""
        return self.config.model_type in ENCODERS

    @property
    def task(self) -> str:
        """What it does by itself: text-generation, text-classification or feature-extraction."""
        if config_labels(self.config.to_dict()):
            return "text-classification"
        return "feature-extraction" if self.encodes else "text-generation"

    @property
    def generator(self) -> type[PreTrainedModel]:
        """A decoder's class that predicts words."""
        return cast(type[PreTrainedModel], transformers.AutoModelForCausalLM._model_mapping[type(self.config)])

    def load(self) -> PreTrainedModel:
        """The torch model, float32; a classifier comes without its head, an encoder as what classifies."""
        gc.collect()
        made = self.model_class if self.encodes or self.task == "text-generation" else self.generator
        try:
            loaded: Any = made.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True,
                                                           output_loading_info=True)
        except (ValueError, RuntimeError, OSError) as error:
            raise EdgeftError(f"base {self.name!r}: transformers cannot load it "
                              f"({str(error).splitlines()[0]})") from None

        model, info = loaded
        head = () if self.task == "text-generation" else (*layout(self.config.model_type).modules, "lm_head")
        lacking = sorted(key for key in map(str, info["missing_keys"]) if key.rpartition(".")[0] not in head)
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
    """Find a base and tell what serves it: decoders, encoders that are known here, and classifiers of both."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # PEFT 0.21 uses both
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|past_key_values)` is deprecated")
    folder = find_base(name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"base {name!r}: transformers does not know it ({str(error).splitlines()[0]})") from None
    model_class = _model_class(name, config)
    weights = Weights(folder)
    fingerprint = weights.fingerprint()
    if config.model_type in ENCODERS:
        weights = EncoderWeights(folder, model_class.base_model_prefix)
    return Base(name, folder, config, weights, fingerprint, model_class)


def _model_class(name: str, config: Any) -> type[PreTrainedModel]:
    """The class that the config names, if optimum's task registry says that it generates text or classifies it."""
    from optimum.exporters.tasks import TasksManager

    if config.model_type in ENCODERS and not config.is_encoder_decoder:  # whatever head the folder's own has
        mapping: Any = transformers.AutoModelForSequenceClassification._model_mapping
        return cast(type[PreTrainedModel], mapping[type(config)])

    named = (config.architectures or [""])[0]
    model_class = getattr(transformers, named, None)
    if model_class is None:
        raise UsageError(f"base {name!r}: architecture {named or 'missing'!r} is not one of transformers'.")
    try:
        task = TasksManager.infer_task_from_model(model_class)
    except (ValueError, KeyError) as error:
        raise UsageError(f"base {name!r}: no task is known for {named} ({str(error).splitlines()[0]})") from None
    decodes = type(config) in transformers.AutoModelForCausalLM._model_mapping \
        and type(config) not in transformers.AutoModelForMaskedLM._model_mapping
    wanted = task == "text-generation" or (task == "text-classification" and decodes)
    if not wanted or config.is_encoder_decoder:
        kind = "encoder-decoder" if config.is_encoder_decoder else task
        raise UsageError(f"base {name!r}: {named} ({config.model_type}) is for {kind}; exported are decoders that "
                         f"generate text, the encoders {', '.join(ENCODERS)}, and classifiers of both.")
    return model_class
