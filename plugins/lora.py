"""The LoRA family on PEFT: LoRA (https://arxiv.org/abs/2106.09685), rsLoRA, DoRA, PiSSA, OLoRA, ranks by pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

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
    use_dora: bool = _option(False, "Learn each output's magnitude apart (https://arxiv.org/abs/2402.09353).", "--dora")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"] = _option(
        "default", "How A and B begin. loftq, on a grid: so that the start is nearest to the float weights. pissa and "
                   "olora take over a part of the base; the run that they leave is a plain LoRA of twice the rank for "
                   "the untouched base.")
    fan_in_fan_out: bool = _option(False, "The base stores its weights as [in, out] (gpt2); found by itself.")

    def __post_init__(self) -> None:
        if not all(self.alpha_pattern.values()) or not self.lora_alpha:
            raise ValueError("lora_alpha must not be 0: the adapter would do nothing")
        for name, rank in {"r": self.r, **self.rank_pattern}.items():
            if rank < 1:
                raise ValueError(f"rank of {name} must be at least 1, found {rank}")


class Lora(Method[LoraOptions]):
    """y = (base(x) + (x A) B * alpha / r) * s, where s is 1 but for DoRA."""

    name = "lora"
    summary = "LoRA and its family: a low-rank change beside each linear layer; small, swappable, mergeable."
    Options = LoraOptions
    peft_type = "LORA"
    learning_rate = 2e-4

    def attach(self, model: nn.Module, options: LoraOptions) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        given = {name: value for name, value in vars(options).items() if value not in ((), {})}
        targets = list(options.target_modules)
        pattern = len(targets) == 1 and (targets[0] == "all-linear" or set(targets[0]) & set(r"*+?()[]{}|\^$"))
        given["target_modules"] = targets[0] if pattern else targets
        init = given.pop("init")
        given["init_lora_weights"] = True if init in ("default", "loftq") else init
        for name in ("exclude_modules", "layers_to_transform"):
            if name in given:
                given[name] = list(given[name])
        try:
            tuned: Any = get_peft_model(model, LoraConfig(**given, **self.peft_task(model)))
        except ValueError as error:
            raise CannotLower(f"lora: {str(error).splitlines()[0]}", _linears(model)) from None
        adapted = [name.removeprefix("base_model.model.") for name, layer in tuned.named_modules()
                   if hasattr(layer, "lora_A")]
        for option in () if pattern else ("target_modules",):  # PEFT is content if one of them is there
            self.check_named(option, targets, adapted)
        for option in ("rank_pattern", "alpha_pattern"):
            self.check_named(option, getattr(options, option), adapted)
        self.check_named("layers_to_transform", [rf".*\.{layer}\..*" for layer in options.layers_to_transform], adapted)
        if init in _TAKES_FROM_BASE:
            if init == "olora" and any(layer.fan_in_fan_out for _, layer, _, _ in _pairs(tuned)):
                raise CannotLower("lora: olora takes weights stored as [in, out] (gpt2) for [out, in] in PEFT",
                                  "Use --init pissa.")
            tuned.edgeft_initial = {name: (a.clone(), b.clone()) for name, _, a, b in _pairs(tuned)}
        if init == "loftq":
            _start_near_floats(tuned)
            tuned.edgeft_starts_changed = True  # its first loss is not the base's
        return tuned

    def finish(self, model: nn.Module) -> None:
        """After pissa and olora: W - s B0 A0 + s B A is W + s [B, -B0] [A; A0], a plain LoRA for the untouched W."""
        initial: Any = model.__dict__.pop("edgeft_initial", None)
        if initial:
            for name, layer, a, b in list(_pairs(model)):
                _double(layer, a, b, *initial[name])
            config: Any = model.peft_config["default"]  # type: ignore[index]
            wider = math.sqrt(2) if config.use_rslora else 2
            config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, wider * config.lora_alpha, True
            config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
            config.alpha_pattern = {name: wider * alpha for name, alpha in config.alpha_pattern.items()}

    def collect(self, model: nn.Module) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name.removeprefix("base_model.model."): tensor.float().cpu().numpy()
                for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}

    def read_peft(self, config: Mapping[str, Any]) -> LoraOptions:
        if config.get("init_lora_weights") not in _PLAIN_INITS:
            raise CannotLower(f"lora: init_lora_weights={config['init_lora_weights']!r} changes the base",
                              "Merge it in PEFT (merge_and_unload) and export the model folder.")
        known = {name: value for name, value in config.items() if name not in _NO_EFFECT and name != "init"}
        for name in ("target_modules", "exclude_modules", "layers_to_transform"):
            if isinstance(known.get(name), (str, int)):
                known[name] = [known[name]]
        return super().read_peft(known)

    def lower(self, learned: dict[str, Any], options: LoraOptions, base: BaseView) -> Lowered:
        lowered, rest = Lowered(), set(learned)
        for key in learned:
            module, _, kind = key.partition(".lora_A")
            partner = f"{module}.lora_B{kind}"
            if kind and partner in learned:
                a, b = learned[key], learned[partner]
                lowered.lowrank[module] = (a.T, b.T * _scaling(module, a.shape[0], options))
                rest -= {key, partner}
                if options.use_dora:
                    lowered.scale[module] = _magnitude_scale(module, learned, options, base)
                    rest.discard(module + _MAGNITUDE)
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
                turned = options.fan_in_fan_out or first == ".lora_embedding_A"
                rows = (weight.T if turned else weight) + (b @ a) * _scaling(module, a.shape[0], options)
                if options.use_dora:
                    rows = rows * _ratio(module, rows, learned)[:, None]
                return rows.T if turned else rows
        return weight


def _scaling(module: str, rank: int, options: LoraOptions) -> float:
    """alpha / r, or alpha / sqrt(r); the rank is the tensor's own, which rank_pattern made."""
    alpha = next((value for pattern, value in options.alpha_pattern.items()
                  if re.match(rf"(.*\.)?({pattern})$", module)), options.lora_alpha)
    return alpha / (math.sqrt(rank) if options.use_rslora else rank)


def _magnitude_scale(module: str, learned: dict[str, Any], options: LoraOptions, base: BaseView) -> Any:
    """DoRA's m / |W + s B A| by output; PEFT does not scale the bias, and a slot would."""
    if f"{module}.bias" in base.names():
        raise CannotLower(f"lora: DoRA on {module}, which has a bias: a slot would scale that too",
                          "Export with --merge.")
    a, b = learned[f"{module}.lora_A.weight"], learned[f"{module}.lora_B.weight"]
    weight = base.tensor(f"{module}.weight")
    rows = (weight.T if options.fan_in_fan_out else weight) + (b @ a) * _scaling(module, a.shape[0], options)
    return _ratio(module, rows, learned)


def _ratio(module: str, rows: Any, learned: dict[str, Any]) -> Any:
    """m / |row| of the tuned weight [out, in]."""
    if module + _MAGNITUDE not in learned:
        raise CannotLower(f"lora: use_dora is set, and {module}{_MAGNITUDE} is missing", "Save the adapter again.")
    return learned[module + _MAGNITUDE] / (rows**2).sum(axis=1) ** 0.5


def _pairs(model: nn.Module) -> Any:
    """(name, LoRA layer, A [r, in], B [out, r]) of each adapted linear layer, in torch."""
    for name, layer in model.named_modules():
        if "default" in getattr(layer, "lora_A", {}):
            yield name, layer, layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def _start_near_floats(model: nn.Module) -> None:
    """Set W + s B A to what is nearest to the weight before rounding: the error's largest singular vectors.

    LoftQ (https://arxiv.org/abs/2310.08659) without its rounding anew in between: the grid is the device's.
    """
    import torch

    for name, layer, a, b in _pairs(model):
        base = layer.get_base_layer()
        if not hasattr(base, "float_weight"):
            raise CannotLower(f"lora: loftq makes up for what rounding took, and {name} is on no grid",
                              "Train with --device or --quant, on a base that has weights, or with another --init.")
        weight = base.weight.detach().float().to(a.device)
        error = base.float_weight().to(a.device) - weight
        u, s, v = _largest(error.T if layer.fan_in_fan_out else error, len(a))
        with torch.no_grad():
            a.zero_()[: len(s)] = s.sqrt()[:, None] * v.T  # a rank above the weight's own leaves zeros
            b.zero_()[:, : len(s)] = u * s.sqrt() / layer.scaling["default"]
            if layer.use_dora["default"]:  # PEFT took the magnitude of the weight without them
                rows = (weight.T if layer.fan_in_fan_out else weight) + layer.scaling["default"] * (b @ a)
                layer.lora_magnitude_vector["default"].weight.copy_(rows.norm(dim=1))


def _largest(matrix: Any, rank: int) -> Any:
    """The largest singular triples U [out, r], S [r], V [in, r]; of wide matrices by a randomized factorization."""
    import torch

    if min(matrix.shape) <= 1024:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank].T
    u, s, v = torch.svd_lowrank(matrix, q=2 * rank + 8, niter=6)
    return u[:, :rank], s[:rank], v[:, :rank]


def _double(layer: Any, a: Any, b: Any, first_a: Any, first_b: Any) -> None:
    """Give the base layer back what A and B took from it, and take that off by twice the rank instead."""
    import torch
    from torch import nn

    first_a, first_b = first_a.to(a.device), first_b.to(b.device)
    with torch.no_grad():
        taken = layer.scaling["default"] * (first_b @ first_a)
        weight = layer.get_base_layer().weight
        weight.data += (taken.T if layer.fan_in_fan_out else taken).to(weight.dtype)
        for part, value in ((layer.lora_A, torch.cat([a, first_a])), (layer.lora_B, torch.cat([b, -first_b], dim=1))):
            part["default"] = nn.Linear(value.shape[1], value.shape[0], bias=False, device=value.device,
                                        dtype=value.dtype)
            part["default"].weight.copy_(value)
    layer.r["default"] *= 2


_MAGNITUDE = ".lora_magnitude_vector"
_TAKES_FROM_BASE = ("pissa", "olora")
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # the base stays as it is
# what only training sees, and what the tensors say themselves; `bias` and every other field must be empty
_NO_EFFECT = ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "megatron_core",
              "qalora_group_size", "runtime_config", "layers_pattern", "modules_to_save", "init_lora_weights")


def _linears(model: nn.Module) -> str:
    from torch import nn

    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    return f"The base has linear layers named {', '.join(names)}."


@hookimpl
def register_methods(register: Any) -> None:
    register(Lora())
