"""Methods for the kit to judge, of `scale` and `prefix` slots: right ones, and ones with one deliberate fault each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeft.contract import CannotLower, Lowered, Method
from edgeft.hookspecs import hookimpl


@dataclass(frozen=True)
class Options:
    size: int = field(default=4, metadata={"help": "Virtual tokens."})


class Gain(Method[Options]):
    """A factor per output of each linear layer, in plain torch."""

    name, summary, Options = "gain", "Factors on linear layers.", Options

    def attach(self, model: Any, options: Options) -> Any:
        import torch

        model.requires_grad_(False)
        linears = [module for name, module in model.named_modules()
                   if isinstance(module, torch.nn.Linear) and name != "lm_head"]
        if not linears:
            raise CannotLower("gain: the base has no torch.nn.Linear", "Take another base.")
        for module in linears:
            module.gain = torch.nn.Parameter(torch.ones(module.out_features))
            module.register_forward_hook(lambda module, inputs, output: output * module.gain)
        return model

    def collect(self, model: Any) -> dict[str, Any]:
        return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()
                if name.endswith(".gain")}

    def lower(self, learned: dict[str, Any], options: Options, base: Any) -> Lowered:
        return Lowered(scale={name.removesuffix(".gain"): gain for name, gain in learned.items()})


class Prompt(Method[Options]):
    """Prompt tuning on PEFT."""

    name, summary, Options = "prompt", "Virtual tokens.", Options
    peft_type = "PROMPT_TUNING"
    tolerances = {"fresh": (float("inf"), "virtual tokens start at random, and every token sees them")}

    def attach(self, model: Any, options: Options) -> Any:
        from peft import PromptTuningConfig, get_peft_model

        return get_peft_model(model, PromptTuningConfig(num_virtual_tokens=options.size, task_type="CAUSAL_LM"))

    def collect(self, model: Any) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(model).items()}

    def read_peft(self, config: Any) -> Options:
        return Options(config["num_virtual_tokens"])

    def lower(self, learned: dict[str, Any], options: Options, base: Any) -> Lowered:
        return Lowered(prefix=base.keys_values(learned["prompt_embeddings"]))


RIGHT: list[type[Method[Any]]] = [Gain, Prompt]
WRONG: dict[type[Method[Any]], set[str]] = {}  # method -> the rules that it breaks
LOWER, MERGE, SAVE = {"lowered_equals_torch"}, {"merged_equals_unmerged"}, {"saved_equals_loaded"}
FRESH, TRAINED = {"fresh_adapter_equals_base"}, {"trained_adapter_differs_from_base"}
FROZEN, UNLOADED = {"only_its_own_parameters_learn"}, {"unloaded_equals_base"}
NOWHERE, DECLARED = {"lowers_or_merges"}, {"declares_what_the_host_asks"}
OPTIONS = {"options_survive_flags_toml_and_json"}


def breaks(rules: set[str]) -> Any:
    def note(wrong: type[Method[Any]]) -> type[Method[Any]]:
        wrong.name = wrong.__name__.lower()
        WRONG[wrong] = rules
        return wrong

    return note


@breaks(TRAINED)
class AttachIsNotInTheForwardPass(Gain):
    def attach(self, model: Any, options: Any) -> Any:
        for module in super().attach(model, options).modules():
            module._forward_hooks.clear()
        return model

    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        return Lowered(scale={name.removesuffix(".gain"): gain**0 for name, gain in learned.items()})


@breaks(FROZEN)
class AttachFreezesNothingInPlainTorch(Gain):
    def attach(self, model: Any, options: Any) -> Any:
        return super().attach(model, options).requires_grad_(True)


@breaks(UNLOADED)
class TrainingWearsTheBaseOut(Gain):
    def attach(self, model: Any, options: Any) -> Any:
        import torch

        attached = super().attach(model, options)
        def wear(module: Any, inputs: Any) -> None:
            with torch.no_grad():
                module.weight.mul_(0.999 if module.training else 1)

        attached.model.norm.register_forward_pre_hook(wear)
        return attached


@breaks(LOWER | MERGE)  # the default merge is made of lower
class LowerSquares(Gain):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        return Lowered(scale={name.removesuffix(".gain"): gain**2 for name, gain in learned.items()})


@breaks(SAVE)
class CollectLosesAFactor(Gain):
    def collect(self, model: Any) -> dict[str, Any]:
        found = super().collect(model)
        return {name: array for name, array in found.items() if name != max(found)}


@breaks(SAVE)
class CollectInventsNames(Gain):
    def collect(self, model: Any) -> dict[str, Any]:
        return {f"my.{name}": array for name, array in super().collect(model).items()}


@breaks(SAVE)
class CollectNamesNoModule(Gain):
    def attach(self, model: Any, options: Options) -> Any:
        import torch

        super().attach(model, options)
        model.gains = torch.nn.ParameterDict()
        for name, module in list(model.named_modules()):
            if "gain" in module._parameters:
                model.gains[name.replace(".", "-")] = module.gain
        return model

    def collect(self, model: Any) -> dict[str, Any]:
        return {f"gains.{name}": parameter.detach().numpy() for name, parameter in model.gains.items()}

    def lower(self, learned: dict[str, Any], options: Options, base: Any) -> Lowered:
        return Lowered(scale={name.removeprefix("gains.").removesuffix(".gain").replace("-", "."): gain
                              for name, gain in learned.items()})


@breaks(LOWER)
class LowerSaysNothingOfAMove(Gain):
    """The layer that leaves the block scales its input, which the slot before it holds as well."""

    def attach(self, model: Any, options: Options) -> Any:
        import torch

        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.mlp.down_proj.gain = torch.nn.Parameter(torch.ones(layer.mlp.down_proj.in_features))
            layer.mlp.down_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] * module.gain,))
        return model

    def lower(self, learned: dict[str, Any], options: Options, base: Any) -> Lowered:
        return Lowered(scale={name.replace("down_proj.gain", "up_proj"): gain for name, gain in learned.items()})

    def merge(self, name: str, weight: Any, learned: dict[str, Any], options: Options) -> Any:
        gain = learned.get(name.replace(".weight", ".gain"))
        return weight if gain is None else weight * gain


class LowerSaysItMoved(LowerSaysNothingOfAMove):
    name = "moves"

    def lower(self, learned: dict[str, Any], options: Options, base: Any) -> Lowered:
        lowered = super().lower(learned, options, base)
        lowered.moved = {name.removesuffix(".gain"): name.replace("down_proj.gain", "up_proj") for name in learned}
        return lowered


RIGHT.append(LowerSaysItMoved)


@breaks(LOWER)
class LowerLosesAVirtualToken(Prompt):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        return Lowered(prefix=base.keys_values(learned["prompt_embeddings"][1:]))


@breaks(LOWER)
class LowerSwapsKeysAndValues(Prompt):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        pairs = super().lower(learned, options, base).prefix
        return Lowered(prefix={layer: (value, key) for layer, (key, value) in pairs.items()})


@breaks(LOWER)
class LowerLeavesALayerOut(Prompt):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        pairs = super().lower(learned, options, base).prefix
        return Lowered(prefix={0: pairs[0]})


@breaks(FRESH)  # without its reason
class StartsAtRandom(Prompt):
    tolerances: Any = {}


@breaks(NOWHERE)
class GoesNowhere(Gain):
    def lower(self, learned: Any, options: Any, base: Any) -> Lowered:
        raise CannotLower("no slot for it", "Use another method.")


@breaks(DECLARED)
class GivesNoReason(Gain):
    tolerances: Any = {"merge": 1e-4}


@breaks(DECLARED)
class ToleratesEverything(Gain):
    tolerances: Any = {"merge": (float("inf"), "I like it so")}


@dataclass
class Melting:
    size: int = field(default=4, metadata={"help": "Not frozen."})


@breaks(DECLARED)
class OptionsMelt(Gain):
    Options: Any = Melting


@dataclass(frozen=True)
class Listed:
    names: tuple[str, ...] = field(default=("a,b",), metadata={"help": "A comma parts two values."})


@breaks(OPTIONS)
class OptionsHoldAComma(Gain):
    Options: Any = Listed


@dataclass(frozen=True)
class Taken:
    seed: int = field(default=4, metadata={"help": "As every method's."})


@breaks({"options_leave_shared_flags_alone"})
class OptionsTakeASharedFlag(Gain):
    Options: Any = Taken


@breaks({"loads_without_torch"})
class IsNotRegistered(Gain): ...


@breaks({"attaches_to_a_base"})
class RefusesEveryBase(Gain):
    def attach(self, model: Any, options: Any) -> Any:
        raise CannotLower("not this one", "Take another base.")


@hookimpl
def register_methods(register: Any) -> None:
    for kind in (*RIGHT, *WRONG):
        if kind.__module__ == __name__ and kind is not IsNotRegistered:
            register(kind())
