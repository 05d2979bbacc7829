"""Multitask prompt tuning (Wang et al. 2023, https://arxiv.org/abs/2303.02861) on PEFT.

All tasks share one soft prompt [n, hidden]; each multiplies it, element by element, with a product of its own of
low rank. What ships is the product for one task, as keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeft.contract import BaseView, CannotLower, Lowered, Method, TaskOptions
from edgeft.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

SHARED, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"


@dataclass(frozen=True)
class MultitaskPromptOptions(TaskOptions):
    """Named as in PEFT's MultitaskPromptTuningConfig."""

    num_virtual_tokens: int = field(default=16, metadata={"help": "Length of the prompt, in tokens."})
    num_ranks: int = field(default=1, metadata={"help": "Rank of each task's own product."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_virtual_tokens", "num_ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


class MultitaskPrompt(Method[MultitaskPromptOptions]):
    """prompt of task t = shared [n, hidden] * (columns[t] [n, r] @ rows[t] [r, hidden])."""

    name = "multitask_prompt"
    summary = "Multitask prompt tuning: one soft prompt for all tasks, times a small product for each."
    Options = MultitaskPromptOptions
    peft_type = "MULTITASK_PROMPT_TUNING"
    learning_rate = 3e-3
    tolerances = {"fresh": (float("inf"), "a soft prompt is there from the start, and any start is seen")}

    def attach(self, model: nn.Module, options: MultitaskPromptOptions) -> nn.Module:
        from peft import MultitaskPromptTuningConfig, get_peft_model

        base: Any = model
        if not base.can_generate():
            raise CannotLower("multitask_prompt: a soft prompt stands before what a decoder reads, and this base is "
                              "none", "Use lora.")
        config = MultitaskPromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=options.num_virtual_tokens, num_ranks=options.num_ranks,
            num_tasks=max(1, len(options.tasks)))
        attached = get_peft_model(model, config)
        _start(attached, model)
        return attached

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        learned = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.detach().float().cpu().numpy() for name, tensor in learned.items()}

    def read_peft(self, config: Mapping[str, Any]) -> MultitaskPromptOptions:
        if config.get("prompt_tuning_init_state_dict_path"):
            raise CannotLower("multitask_prompt: adapter_config.json names a file to start from "
                              f"({config['prompt_tuning_init_state_dict_path']!r}), which PEFT would open",
                              "The folder's own weights are what counts: set prompt_tuning_init to \"RANDOM\" and "
                              "prompt_tuning_init_state_dict_path to null.")
        if config.get("num_transformer_submodules") not in (None, 1):
            raise CannotLower("multitask_prompt: prompts an encoder and a decoder, and only decoders are exported")
        options = super().read_peft({**config, **dict.fromkeys(_IGNORED)})
        names = tuple(str(index) for index in range(int(config.get("num_tasks") or 1)))
        return MultitaskPromptOptions(names, "", options.num_virtual_tokens, options.num_ranks)

    def lower(self, learned: dict[str, Any], options: MultitaskPromptOptions, base: BaseView) -> Lowered:
        if set(learned) != {SHARED, COLUMNS, ROWS}:
            raise CannotLower(f"multitask_prompt: declared tensors {SHARED}, {COLUMNS}, {ROWS} found "
                              f"{', '.join(sorted(learned))}", "Anything else that was trained would be lost.")
        count, task = learned[COLUMNS].shape[0], options.task_index
        if count != len(options.tasks):
            raise CannotLower(f"multitask_prompt: declared {len(options.tasks)} tasks found {count} in its tensors")
        prompt = learned[SHARED] * (learned[COLUMNS][task] @ learned[ROWS][task])
        return Lowered(prefix=base.keys_values(prompt))

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: MultitaskPromptOptions) -> Any:
        raise CannotLower("multitask_prompt: a soft prompt stands before the text and cannot be folded into weights",
                          "Export without --merge.")


# MultitaskPromptTuningConfig fields that do not change what a trained prompt computes
_IGNORED = ("token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "num_tasks",
            "prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path",
            "prompt_tuning_init_task", "tokenizer_name_or_path", "tokenizer_kwargs")


def _start(attached: nn.Module, base: nn.Module) -> None:
    """Start from embeddings of drawn tokens, and from products near 1.

    PEFT draws products near 0: every prompt, and every gradient of the shared one, is then a thousandth of a token's.
    """
    import torch

    encoder: Any = attached.prompt_encoder.default  # type: ignore[union-attr]
    words: Any = base.get_input_embeddings()  # type: ignore[operator]
    rank = encoder.prefix_task_cols.shape[-1]
    with torch.no_grad():
        drawn = torch.randint(words.num_embeddings, (encoder.embedding.num_embeddings,))
        encoder.embedding.weight.copy_(words.weight[drawn.to(words.weight.device)])
        encoder.prefix_task_cols.add_(1 / rank)
        encoder.prefix_task_rows.add_(1)


@hookimpl
def register_methods(register: Any) -> None:
    register(MultitaskPrompt())
