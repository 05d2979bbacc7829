"""The rules that concern what a method computes. Each stands alone: a fault breaks the rule about it and no other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from edgeft.contract import CannotLower
from edgeft.contract.slots import Array

from .case import Case, RuleBroken, RuleSkipped, difference, seeded
from .models import TorchBase, token_ids
from .reference import check_lowered, lowered_logits
from .storage import collected, for_export, loaded, saved

TEETH = 10  # what was learned must differ from the base by this many tolerances, or an equality would prove little
AGAIN = 1e-6  # the same computation twice


def fresh_adapter_equals_base(case: Case) -> None:
    """Before the first step the attached model answers as the base does."""
    if math.isinf(case.tolerance("fresh")):
        raise RuleSkipped(f"{case.name}: {case.method.tolerances['fresh'][1]}")
    _equal(case, "fresh", case.logits(case.attach().model), case.base_logits(),
           "attach() changed the answers before anything was learned")


def trained_adapter_differs_from_base(case: Case) -> None:
    """A few steps lower the loss and move the answers."""
    attached = case.attach()
    if not attached.own:
        raise RuleBroken(f"{case.name}: attach() left nothing to train. Its parameters must have requires_grad; base "
                         "parameters that the method means to change are named by the kit's `learns`")
    before, after = case.train(attached)
    if not after < before:
        raise RuleBroken(f"{case.name}: the loss went from {before:.4f} to {after:.4f} in training")
    wanted = TEETH * max(value for value in map(case.tolerance, ("load", "lower", "merge")))
    found = difference(case.logits(attached.model), case.base_logits())
    if not wanted < found < math.inf:
        raise RuleBroken(f"{case.name}: after training the logits differ from the base's by {found:.1e}; more than "
                         f"{wanted:.1e} ({TEETH} tolerances) is needed to tell a right adapter from a wrong one")


def only_its_own_parameters_learn(case: Case) -> None:
    """attach() freezes the base."""
    unfrozen = case.attach().unfrozen
    if unfrozen:
        raise RuleBroken(f"{case.name}: attach() left {len(unfrozen)} parameters of the base trainable, e.g. "
                         f"{unfrozen[0]}. Call model.requires_grad_(False) first; those that the method means to "
                         "change are named by the kit's `learns`, a regular expression")


def unloaded_equals_base(case: Case) -> None:
    """A base that comes after is untouched; take back what was learned and the first model is there."""
    attached = case.attach()
    first = case.logits(attached.model)
    start = {name: parameter.detach().clone() for name, parameter in attached.own.items()}
    case.train(attached)
    gap = difference(case.logits(case.attach().model), first)
    if gap > AGAIN:
        raise RuleBroken(f"{case.name}: attached to a fresh base after a training, it differs by {gap:.1e} from the "
                         "first time: the method object keeps something of a model")
    with torch.no_grad():
        for name, parameter in attached.own.items():
            parameter.copy_(start[name])
    gap = difference(case.logits(attached.model), first)
    if gap > AGAIN:
        raise RuleBroken(f"{case.name}: with its own parameters as they were before training, the logits still differ "
                         f"by {gap:.1e}: training changed something else")


def saved_equals_loaded(case: Case) -> None:
    """What training writes, read back onto a fresh base, is the trained model; collect() says the same."""
    attached, answer = case.perturbed()
    with saved(case, attached.model) as artifact:
        if artifact.kind == "peft":
            _same_tensors(case, collected(case, attached.model), artifact.learned())
        _equal(case, "load", case.logits(loaded(case, artifact)), answer,
               "what was saved and loaded again is not what was trained: collect() or finish() changed something")


def lowered_equals_torch(case: Case) -> None:
    """The plain base with what lower() returned in its slots answers as the trained model does."""
    attached, _ = case.perturbed()
    learned, options = for_export(case, attached)
    base = case.base_model()
    try:
        with seeded(0):
            lowered = case.method.lower(learned, options, TorchBase(base))
    except CannotLower as error:
        raise RuleSkipped(_refusal(case, "lower", error)) from None
    check_lowered(lowered, base, learned)
    _equal(case, "lower", lowered_logits(base, lowered, token_ids()), case.logits(attached.model),
           f"lower() ({', '.join(lowered.kinds)}) is not what was trained")


def merged_equals_unmerged(case: Case) -> None:
    """A plain model of weights that merge() returned, one tensor at a time, answers as the trained model does."""
    attached, _ = case.perturbed()
    learned, options = for_export(case, attached)
    try:
        with seeded(0):
            merged = merge_all(case, learned, options)
    except CannotLower as error:
        raise RuleSkipped(_refusal(case, "merge", error)) from None
    model = case.base_model(tied=False)  # a change to one of two tied tensors tears them apart
    model.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in merged.items()})
    _equal(case, "merge", case.logits_of_plain(model), case.logits(attached.model), "merge() is not what was trained")


def lowers_or_merges(case: Case) -> None:
    """There is a way to a device: lower() or merge() or both."""
    learned, options = for_export(case, case.perturbed()[0])
    reasons = []
    ways: list[Callable[[], object]] = [
        lambda: case.method.lower(learned, options, TorchBase(case.base_model())),
        lambda: merge_all(case, learned, options)]
    for way in ways:
        try:
            with seeded(0):
                way()
        except CannotLower as error:
            reasons.append(error.reason)
        except Exception:  # the rule about this way will tell
            continue
    if len(reasons) == len(ways):
        raise RuleBroken(f"{case.name}: neither lowers nor merges, so it cannot be exported:\n  lower: {reasons[0]}\n  "
                         f"merge: {reasons[1]}")


RULES: dict[str, Callable[[Case], None]] = {rule.__name__: rule for rule in (
    fresh_adapter_equals_base, trained_adapter_differs_from_base, only_its_own_parameters_learn, unloaded_equals_base,
    saved_equals_loaded, lowered_equals_torch, merged_equals_unmerged, lowers_or_merges)}


def merge_all(case: Case, learned: dict[str, Array], options: object) -> dict[str, Array]:
    """Every tensor of the base through merge(), each read-only and alone."""
    merged = {}
    for name, tensor in case.base_model().state_dict().items():
        weight = tensor.numpy().copy()
        weight.flags.writeable = False
        merged[name] = case.method.merge(name, weight, learned, options)
        if merged[name].shape != weight.shape:
            raise RuleBroken(f"{case.name}: merge() made {list(merged[name].shape)} of {name} {list(weight.shape)}")
    return merged


def _equal(case: Case, rule: str, found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    gap, tolerance = difference(found, wanted), case.tolerance(rule)
    if gap > tolerance:
        raise RuleBroken(f"{case.name}: {what}. The logits differ by {gap:.1e}, and {tolerance:.0e} is allowed "
                         f"(a method with a reason for more says so: tolerances = {{{rule!r}: (..., \"reason\")}})")


def _same_tensors(case: Case, found: dict[str, Array], wanted: dict[str, Array]) -> None:
    faults = [f"{name}: only collect() has it" for name in sorted(found.keys() - wanted.keys())]
    faults += [f"{name}: collect() lacks it" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"{name}: has other values" for name in sorted(found.keys() & wanted.keys())
               if not np.array_equal(found[name], wanted[name])]
    if faults:
        raise RuleBroken(f"{case.name}: collect() is not what PEFT saves:\n  " + "\n  ".join(faults[:6]))


def _refusal(case: Case, face: str, error: CannotLower) -> str:
    if not error.way_out:
        raise RuleBroken(f"{case.name}: {face}() raised CannotLower({error.reason!r}) and no way out. Say what the "
                         "user can do instead: CannotLower(reason, way_out)")
    return f"{case.name}: cannot {face}: {error.reason}"
