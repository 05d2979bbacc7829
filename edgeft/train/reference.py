"""The untouched base beside the model that learns: its adapter switched off, or a frozen copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from edgeft.contract.data import Example
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.forgetting import opened
from edgeft.contract.grid import Quant

from .base import Base, load_base
from .grid import put_on_grid
from .objective import Objective

# of PEFT's ways to begin, those that leave the base's weights as they are; with any other the base is loaded again
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


class Reference:
    """The base as it was before training, on its grid if it has one; nothing is loaded before it is asked."""

    def __init__(self, base: Base, model: nn.Module, name: str, fingerprint: str,
                 grid: dict[str, Any] | None) -> None:
        self.base, self.model, self.name, self.fingerprint, self.grid = base, model, name, fingerprint, grid

    @property
    def _switched(self) -> bool:
        """Whether the model without its adapter is the base."""
        return isinstance(self.model, PeftModel) and \
            getattr(self.model.active_peft_config, "init_lora_weights", None) in PLAIN_INITS

    @cached_property
    def _copy(self) -> PreTrainedModel:
        with torch.random.fork_rng():  # training goes on with its own random numbers
            again = load_base(self.name)
        if not again.fingerprint:
            raise UsageError(f"base {self.name!r}: has no weights, so there is nothing that could be forgotten.")
        if self.fingerprint not in ("", again.fingerprint):
            raise EdgeftError(f"base {self.name!r}: is not the base that training began with: fingerprint declared "
                              f"{self.fingerprint[:12]} found {again.fingerprint[:12]}. Put it back, or name it with "
                              "--base.")
        if self.grid:
            put_on_grid(again.model, Quant.from_json(self.grid), packed=bool(self.grid.get("packed")))
        own = next(self.base.model.parameters())
        again.model.requires_grad_(False)
        return again.model.eval().to(own.device)

    @contextmanager
    def on(self) -> Iterator[PreTrainedModel]:
        """The base's own model, in evaluation mode and without gradients."""
        if not self._switched:
            with torch.no_grad():
                yield self._copy
            return
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.model.disable_adapter():  # type: ignore[operator]
                yield self.model  # type: ignore[misc]  # and not the base in it: a sharded one answers only whole
        finally:
            self.model.train(training)

    def logits(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """As Objective.logits, of the base."""
        with self.on() as model:
            return Objective(model, model.get_output_embeddings(), pad=self.base.eos or 0).logits(examples)


@torch.no_grad()
def own_samples(base: Base, reference: Reference, samples: int, length: int, seed: int) -> list[Example]:
    """Texts that the base writes by itself behind its own first token, at temperature 1; none if there is none."""
    first = base.hf_tokenizer.bos_token_id
    start = opened(base.tokenizer, "", base.eos if first is None else first)
    if not start:
        return []
    random, cache = torch.Generator().manual_seed(seed), None
    with reference.on() as model:
        device = next(model.parameters()).device
        ids = torch.tensor([start] * samples)
        fed = ids
        for _ in range(length - ids.shape[1]):
            out = model(input_ids=fed.to(device), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            fed = torch.multinomial(out.logits[:, -1].float().softmax(-1).cpu(), 1, generator=random)
            ids = torch.cat([ids, fed], dim=1)
    return [_until_end(row, len(start), base.eos) for row in ids.tolist()]


def _until_end(ids: list[int], opening: int, eos: int | None) -> Example:
    ended = ids.index(eos, opening) + 1 if eos in ids[opening:] else len(ids)
    return Example(ids[:ended], [False] * opening + [True] * (ended - opening))
