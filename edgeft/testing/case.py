"""One method with one set of options on one base: attached, trained, and asked for its logits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgeft.contract import Method
from edgeft.contract.errors import EdgeftError

from .models import LENGTH, tiny_base, token_ids
from .tolerances import tolerance_of

Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class RuleBroken(AssertionError):
    """A method does not keep a rule; the message says which value was off and what to do."""


class RuleSkipped(Exception):
    """A rule that the method, by its own words, cannot be held to here."""


def logits_of(model: nn.Module, ids: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
    """Logits [rows, length, vocabulary] of the tokens themselves; a soft prompt's own positions are dropped."""
    output: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits
    return output[:, -ids.shape[1]:]


@dataclass
class Attached:
    """A model that a method attached itself to."""

    model: nn.Module
    own: dict[str, nn.Parameter]  # what may learn: all that attach() left trainable, but for the base's
    unfrozen: list[str]  # parameters of the base that attach() left trainable and that are not the method's


@dataclass(frozen=True)
class Case:
    """A method, its options and a base. Everything here is made anew at each call: no rule sees another's model."""

    method: Method[Any]
    options: Any
    base: str
    learns: str = ""  # a regular expression of the base's own parameters that the method means to change
    forward: Forward = field(default=logits_of)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method.name} on {self.base}"

    def tolerance(self, rule: str) -> float:
        """The largest difference of any logit that the rule allows: the method's own figure, or the kit's."""
        return tolerance_of(self.method.tolerances, rule)

    def attach(self, seed: int = 0) -> Attached:
        """Attach to a fresh base; RuleSkipped if the method refuses it."""
        base = tiny_base(self.base)
        before = dict(base.named_parameters())
        with seeded(seed):
            try:
                model = self.method.attach(base, self.options)
            except EdgeftError as error:
                raise RuleSkipped(f"{self.name}: refused: {error}") from None
        names = {id(parameter): name for name, parameter in before.items()}
        own, unfrozen = {}, []
        for name, parameter in model.named_parameters():
            place = names.get(id(parameter))
            if parameter.requires_grad and place is not None and not (self.learns and re.search(self.learns, place)):
                unfrozen.append(place)
            elif parameter.requires_grad:
                own[name] = parameter
        return Attached(model.eval(), own, unfrozen)

    def perturbed(self) -> tuple[Attached, torch.Tensor]:
        """Attached, every parameter of its own moved, and finished: what training leaves, without its steps.

        With the logits before finish().
        """
        attached = self.attach()
        noise = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in attached.own.values():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
        answer = self.logits(attached.model)
        with seeded(0):
            self.method.finish(attached.model)
        return attached, answer

    def train(self, attached: Attached, steps: int = 8) -> tuple[float, float]:
        """A few steps on the kit's tokens; the loss before and after them, both without dropout."""
        ids = token_ids()
        before = float(_loss(self.logits(attached.model), ids))
        if not attached.own:
            return before, before
        optimizer = torch.optim.AdamW(attached.own.values(), lr=1e-2)
        attached.model.train()
        for step in range(steps):
            with seeded(step):
                loss = _loss(self.forward(attached.model, ids), ids)
            if loss.requires_grad:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        attached.model.eval()
        return before, float(_loss(self.logits(attached.model), ids))

    def logits(self, model: nn.Module) -> torch.Tensor:
        """The model's answer [rows, length, vocabulary] to the kit's tokens."""
        with torch.inference_mode(), seeded(0):
            found = self.forward(model, token_ids())
        if found.shape[1] != LENGTH:
            raise RuleBroken(f"{self.name}: logits of {found.shape[1]} positions for {LENGTH} tokens")
        return found

    def logits_of_plain(self, model: PreTrainedModel) -> torch.Tensor:
        """A plain model's answer to the kit's tokens."""
        with torch.inference_mode():
            return logits_of(model, token_ids())

    def base_model(self, tied: bool | None = None) -> PreTrainedModel:
        """The plain base."""
        return tiny_base(self.base, tied=tied)

    def base_logits(self) -> torch.Tensor:
        """The plain base's answer."""
        return self.logits_of_plain(self.base_model())


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside, without a trace outside; what libraries warn of is no rule's matter."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of any logit; infinite if one is no number."""
    gap = float((found - wanted).abs().max())
    return gap if gap == gap else float("inf")
