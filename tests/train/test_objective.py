"""The loss equals transformers' own on the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeft.contract.data import Example
from edgeft.train.mixture import passes
from edgeft.train.objective import Objective


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_loss_equals_the_models_own(make_base: Callable[..., Path], model_type: str) -> None:
    """gemma2 caps its logits after the head: the hook must leave that in place."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_base(model_type)).eval()
    examples = [Example([1, 9, 8, 7, 6, 2], [False, False, True, True, False, True]),
                Example([1, 30, 31], [False, False, True])]
    labels = torch.tensor([[-100, -100, 8, 7, -100, 2], [-100, -100, 31, -100, -100, -100]])
    ids = torch.tensor([[1, 9, 8, 7, 6, 2], [1, 30, 31, 0, 0, 0]])
    wanted = model(input_ids=ids, attention_mask=(torch.arange(6) < torch.tensor([[6], [3]])).long(), labels=labels)
    found = Objective(model, model.get_output_embeddings())(examples)
    assert torch.allclose(found / 4, wanted.loss, atol=1e-5)
    other = Objective(model, model.get_output_embeddings())([Example(examples[0].ids, [False] + [True] * 5)])
    assert not torch.allclose(other / 5, wanted.loss, atol=1e-3)


def test_the_gradient_reaches_the_head_and_the_embedding(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    Objective(model, model.get_output_embeddings())([Example([1, 5, 6], [False, True, True])]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_passes_keep_every_example_within_the_limit() -> None:
    examples = [Example(list(range(3 + index % 7)), [False] + [True] * (2 + index % 7)) for index in range(20)]
    parts = passes(examples, 24)
    assert sorted(id(item) for part in parts for item in part) == sorted(map(id, examples))
    assert all(len(part) * max(len(item.ids) for item in part) <= 24 for part in parts)
