"""Text classification: a base with a new head, the cross-entropy over labels, and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from edgeft.contract import Method
from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.heads import ENCODERS, SOFT_PROMPTS, layout
from edgeft.contract.tensors import has_weights

from . import processes
from .labels import LabelExample
from .mixture import passes

NEW = "new_modules"  # attribute of a model: names of the head's modules that learn, whatever the method


def check_config(name: str, config: Any, labels: Sequence[str]) -> None:
    """Refuse, by name, the architectures that are not trained on this kind of data."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    known = f"Encoders that are trained: {', '.join(ENCODERS)}, on lines of {{\"text\", \"label\"}}; and decoders."
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"base {name!r}: {kind} is an encoder-decoder, and those are not trained. {known}")
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if kind in ENCODERS and not labels:
        raise UsageError(f"base {name!r}: {kind} is an encoder: it is trained for classification, on lines of "
                         '{"text", "label"}, and masked language modelling is not offered.')
    if encodes and kind not in ENCODERS:
        raise UsageError(f"base {name!r}: {kind} is an encoder that is not known here. {known}")


def load_classifier(name: str, folder: Path, config: Any, labels: Sequence[str], pad: int) -> PreTrainedModel:
    """The base with a head of these labels; modules that its weights lack are new, and named in `new_modules`."""
    kept = list((config.id2label or {}).values()) == list(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = pad
    lacking: list[str] = []
    if has_weights(folder):
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True)
        model, info = loaded
        lacking = [*map(str, info["missing_keys"]), *(str(key[0]) for key in info["mismatched_keys"])]
    else:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    head = layout(config.model_type).modules
    names = {module for module, _ in model.named_modules()}
    if not set(head) <= names:
        raise UsageError(f"base {name!r}: the classifier of {config.model_type} has no module {head[0]!r}, so it "
                         "cannot be trained here.")
    body = [key for key in lacking if not key.startswith(tuple(f"{module}." for module in head))]
    if body:
        raise EdgeftError(f"base {name!r}: its weights lack {len(body)} tensors, or hold them in other shapes: "
                          f"{', '.join(sorted(body)[:3])}")
    new = {module for module in head if any(key.startswith(f"{module}.") for key in lacking)}
    if not kept or not lacking:
        new.add(head[-1])  # the last layer learns these labels in any case
    # PEFT finds modules by the end of their name: bert.pooler.dense -> pooler, classifier.out_proj -> classifier
    prefix = f"{model.base_model_prefix}."
    units = {module.removeprefix(prefix).partition(".")[0] for module in new}
    setattr(model, NEW, tuple(sorted(units)))
    return cast(PreTrainedModel, model)


def check_method(method: Method[Any], model: PreTrainedModel) -> None:
    """Soft prompts equal a prefix of keys and values only where attention looks back alone."""
    if method.peft_type in SOFT_PROMPTS and model.config.model_type in ENCODERS:
        raise UsageError(f"{method.name}: a soft prompt on an encoder ({model.config.model_type}) cannot be run: its "
                         "attention goes both ways, so no prefix of keys and values equals it. Use lora or full.")


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The new head's parameters, by name; empty for a language model."""
    units = getattr(model, NEW, ())
    return {name: parameter for name, parameter in model.named_parameters() if set(units) & set(name.split("."))}


def learn_head(model: PreTrainedModel, tuned: nn.Module) -> None:
    """The new head learns whatever the method; PEFT keeps its own copy of it (modules_to_save)."""
    if not hasattr(tuned, "peft_config"):
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)


class ClassObjective:
    """Sum of the cross-entropy over labels of a batch; rows are padded on the right and masked."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        self.model, self.pad = model, pad

    def scores(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, labels], and the index of each example's own label."""
        device = next(self.model.parameters()).device
        width = max(len(example.ids) for example in examples)
        ids = torch.full((len(examples), width), self.pad)
        mask = torch.zeros((len(examples), width), dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        labels = [example.label for example in examples if isinstance(example, LabelExample)]
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits.float(), torch.tensor(labels, device=device)

    def __call__(self, examples: Sequence[Example]) -> torch.Tensor:
        """Summed negative log-likelihood in nats of one padded pass."""
        logits, labels = self.scores(examples)
        return nn.functional.cross_entropy(logits, labels, reduction="sum")


@torch.no_grad()
def measure_classes(objective: ClassObjective, examples: Sequence[Example], tokens_per_pass: int) -> dict[str, Any]:
    """Nats per example, and the share whose likeliest label is their own."""
    training = objective.model.training
    objective.model.eval()
    total, right = 0.0, 0.0
    for part, counts in processes.share_of(passes(examples, tokens_per_pass)):
        logits, labels = objective.scores(part)
        total += counts * float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += counts * int((logits.argmax(-1) == labels).sum())
    objective.model.train(training)
    total, right = processes.total(total, right)
    count = max(len(examples), 1)
    return {"loss": total / count, "accuracy": right / count, "examples": len(examples)}
