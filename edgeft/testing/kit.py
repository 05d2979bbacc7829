"""The rules as a pytest class: inherit, name the method, and each rule is a test per base and set of options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from edgeft.contract import Method
from edgeft.options import to_json

from . import declarations, rules
from .case import Case, RuleBroken, RuleSkipped, logits_of


class MethodKit:
    """Inherit as `class TestX(MethodKit)` and set `method`; the rest has defaults."""

    method: ClassVar[Method[Any]]
    options: ClassVar[Sequence[Any]] = ()  # sets of the method's Options to try; its defaults if empty
    bases: ClassVar[Sequence[str]] = ("llama", "qwen2", "gpt2")  # plain; with biases, tied; biases, [in, out] weights
    learns: ClassVar[str] = ""  # regular expression of base parameters that the method itself changes

    def forward(self, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Logits [rows, length, vocabulary] of the attached model; override it for one that must be told more."""
        return logits_of(model, ids)

    @classmethod
    def sets(cls) -> list[Any]:
        """The sets of options."""
        return list(cls.options) or [cls.method.Options()]

    @classmethod
    def case(cls, base: str, options: Any) -> Case:
        """One base with one set of options."""
        return Case(cls.method, options, base, cls.learns, cls().forward)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test per base and set of options."""
        kit = type(self)
        if "case" in metafunc.fixturenames:
            chosen = [(base, options) for options in kit.sets() for base in kit.bases]
            metafunc.parametrize("case", [kit.case(*each) for each in chosen],
                                 ids=[f"{base}-{_label(options)}" for base, options in chosen])
        elif "given" in metafunc.fixturenames:
            metafunc.parametrize("given", kit.sets(), ids=list(map(_label, kit.sets())))

    def test_declares_what_the_host_asks(self) -> None:
        with told():
            declarations.declares_what_the_host_asks(self.method)

    def test_loads_without_torch(self) -> None:
        with told():
            declarations.loads_without_torch(self.method)

    def test_options_leave_shared_flags_alone(self) -> None:
        with told():
            declarations.options_leave_shared_flags_alone(self.method.Options)

    def test_options_survive_flags_toml_and_json(self, given: Any) -> None:
        with told():
            declarations.options_survive_flags_toml_and_json(given)

    def test_attaches_to_a_base(self, given: Any) -> None:
        with told():
            attaches_to_a_base([self.case(base, given) for base in self.bases])

    def test_fresh_adapter_equals_base(self, case: Case) -> None:
        _hold(rules.fresh_adapter_equals_base, case)

    def test_trained_adapter_differs_from_base(self, case: Case) -> None:
        _hold(rules.trained_adapter_differs_from_base, case)

    def test_only_its_own_parameters_learn(self, case: Case) -> None:
        _hold(rules.only_its_own_parameters_learn, case)

    def test_unloaded_equals_base(self, case: Case) -> None:
        _hold(rules.unloaded_equals_base, case)

    def test_saved_equals_loaded(self, case: Case) -> None:
        _hold(rules.saved_equals_loaded, case)

    def test_lowered_equals_torch(self, case: Case) -> None:
        _hold(rules.lowered_equals_torch, case)

    def test_merged_equals_unmerged(self, case: Case) -> None:
        _hold(rules.merged_equals_unmerged, case)

    def test_lowers_or_merges(self, case: Case) -> None:
        _hold(rules.lowers_or_merges, case)


def attaches_to_a_base(cases: Sequence[Case]) -> None:
    """A method that refuses every base was tested on none."""
    refusals = []
    for case in cases:
        try:
            case.attach()
            return
        except RuleSkipped as refusal:
            refusals.append(str(refusal))
    raise RuleBroken("attach() refuses every base of the kit:\n  " + "\n  ".join(refusals) +
                     "\nName others with `bases`: a tiny model of that transformers model type is made.")


@contextmanager
def told() -> Iterator[None]:
    """A broken rule is its message, not a traceback through the kit; one that cannot be asked is skipped."""
    broken = skipped = ""
    try:
        yield
    except RuleBroken as error:
        broken = str(error)
    except RuleSkipped as error:
        skipped = str(error)
    if broken:
        pytest.fail(broken, pytrace=False)
    if skipped:
        pytest.skip(skipped)


def _hold(rule: Callable[[Case], None], case: Case) -> None:
    with told():
        rule(case)


def _label(options: Any) -> str:
    """What differs from the defaults, for the test's name."""
    defaults = to_json(type(options)())
    given = {name: value for name, value in to_json(options).items() if value != defaults[name]}
    return ",".join(f"{name}={_short(value)}" for name, value in given.items()) or "defaults"


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
