"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) on PEFT, with rank-stabilized scaling and patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeft.contract import BaseView, CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


def _option(default: Any, help: str, *flags: str) -> Any:
    shared: dict[str, Any] = {"metadata": {"help": help, "flags": flags}}
    return field(default_factory=dict, **shared) if default == {} else field(default=default, **shared)


@dataclass(frozen=True)
class LoraOptions:
    """Named as in PEFT's LoraConfig."""

    r: int = _option(8, "Rank.", "--rank")
    lora_alpha: float = _option(16, "Scale: the change is multiplied by alpha / rank.", "--alpha")
    lora_dropout: float = _option(0.0, "Dropout before A, in training only.")
    target_modules: tuple[str, ...] = _option(("all-linear",), "Names or one regular expression of the layers; "
                                              "all-linear: every linear layer but the head.")
    exclude_modules: tuple[str, ...] = _option((), "Layers to leave out.")
    layers_to_transform: tuple[int, ...] = _option((), "Only these layers, by index.")
    rank_pattern: dict[str, int] = _option({}, "Other ranks for some layers: name=rank.")
    alpha_pattern: dict[str, float] = _option({}, "Other alphas for some layers: name=alpha.")
    use_rslora: bool = _option(False, "Scale by alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732).", "--rslora")
    fan_in_fan_out: bool = _option(False, "The base stores its weights as [in, out] (gpt2); found by itself.")

    def __post_init__(self) -> None:
        if not all(self.alpha_pattern.values()) or not self.lora_alpha:
            raise ValueError("lora_alpha must not be 0: the adapter would do nothing")
        for name, rank in {"r": self.r, **self.rank_pattern}.items():
            if rank < 1:
                raise ValueError(f"rank of {name} must be at least 1, found {rank}")


class Lora(Method[LoraOptions]):
    """y = base(x) + (x A) B * alpha / r."""

    name = "lora"
    summary = "LoRA: a low-rank change beside each linear layer; small, swappable, mergeable."
    Options = LoraOptions
    peft_type = "LORA"
    learning_rate = 2e-4

    def attach(self, model: nn.Module, options: LoraOptions) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        given = {name: value for name, value in vars(options).items() if value not in ((), {})}
        targets = list(options.target_modules)
        pattern = len(targets) == 1 and (targets[0] == "all-linear" or set(targets[0]) & set(r"*+?()[]{}|\^$"))
        given["target_modules"] = targets[0] if pattern else targets
        for name in ("exclude_modules", "layers_to_transform"):
            if name in given:
                given[name] = list(given[name])
        try:
            return get_peft_model(model, LoraConfig(**given, **self.peft_task(model)))
        except ValueError as error:
            raise CannotLower(f"lora: {str(error).splitlines()[0]}", _linears(model)) from None

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name.removeprefix("base_model.model."): tensor.float().cpu().numpy()
                for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}

    def read_peft(self, config: Mapping[str, Any]) -> LoraOptions:
        return super().read_peft({**config, **_checked(config)})

    def lower(self, learned: dict[str, Any], options: LoraOptions, base: BaseView) -> Lowered:
        lowered, rest = Lowered(), set(learned)
        for key in learned:
            module, _, kind = key.partition(".lora_A")
            partner = f"{module}.lora_B{kind}"
            if kind and partner in learned:
                a, b = learned[key], learned[partner]
                lowered.lowrank[module] = (a.T, b.T * _scaling(module, a.shape[0], options))
                rest -= {key, partner}
        embedded = sorted(key for key in rest if ".lora_embedding_" in key)
        if embedded:
            raise CannotLower(f"lora: an embedding was adapted ({embedded[0]}), which no slot can hold",
                              "Export with --merge.")
        if rest:
            raise CannotLower(f"lora: {len(rest)} tensors are no LoRA pairs, e.g. {min(rest)}",
                              "They would be lost. Export with --merge if they are modules_to_save.")
        return lowered

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: LoraOptions) -> Any:
        if name in learned:  # modules_to_save: trained whole
            return learned[name]
        module = name.removesuffix(".weight")
        for first, second in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if name.endswith(".weight") and module + first in learned:
                a, b = learned[module + first], learned[module + second]
                change = (b @ a) * _scaling(module, a.shape[0], options)
                transposed = options.fan_in_fan_out or first == ".lora_embedding_A"
                return weight + (change.T if transposed else change)
        return weight


def _scaling(module: str, rank: int, options: LoraOptions) -> float:
    """alpha / r, or alpha / sqrt(r); the rank is the tensor's own, which rank_pattern made."""
    alpha = next((value for pattern, value in options.alpha_pattern.items()
                  if re.match(rf"(.*\.)?({pattern})$", module)), options.lora_alpha)
    return alpha / (math.sqrt(rank) if options.use_rslora else rank)


# LoraConfig fields that change the arithmetic in a way that is not computed here: refused by name
_REFUSED = ("use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters",
            "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
            "monteclora_config", "ensure_weight_tying")
_IGNORED = ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "megatron_config", "megatron_core",
            "qalora_group_size", "runtime_config", "layers_pattern", "modules_to_save", "init_lora_weights", "bias")


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that need no option here, as None; CannotLower for those that would change the arithmetic."""
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias") not in (None, "none"):
        refused.append(f"bias={config['bias']!r}")
    if config.get("init_lora_weights") not in (None, True, False, "gaussian", "eva", "orthogonal"):
        refused.append(f"init_lora_weights={config['init_lora_weights']!r} (it changes the base)")
    if refused:
        raise CannotLower(f"lora: {', '.join(refused)} cannot be exported yet",
                          "Merge it in PEFT (merge_and_unload) and export the model folder.")
    found = dict.fromkeys((*_IGNORED, *_REFUSED))
    for name in ("target_modules", "exclude_modules", "layers_to_transform"):
        if isinstance(config.get(name), (str, int)):
            found[name] = [config[name]]
    return found


def _linears(model: nn.Module) -> str:
    from torch import nn

    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    return f"The base has linear layers named {', '.join(names)}."


@hookimpl
def register_methods(register: Any) -> None:
    register(Lora())
