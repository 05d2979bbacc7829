"""The torch model that a bundle must equal: the base, the tuned model as its makers load it, and both on the grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from edgeft.contract import Method, TaskOptions
from edgeft.contract.artifact import Artifact
from edgeft.contract.errors import EdgeftError
from edgeft.contract.grid import Quant


class Oracle:
    """A base model in torch, float32, with at most one artifact attached to it."""

    def __init__(self, model: PreTrainedModel, eos: Sequence[int]) -> None:
        self.base = model.eval()
        self.model: nn.Module = self.base
        self.eos = frozenset(eos)
        self.extra: dict[str, torch.Tensor] = {}  # what the model must be told beside the tokens

    @property
    def soft(self) -> bool:
        """Whether a soft prompt is attached: PEFT puts it before every input, so no cache can be gone on with."""
        return isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning

    def attach(self, artifact: Artifact, method: Method[Any] | None, options: Any) -> None:
        """Load what was learned the way its own library does: that is what the bundle is compared with."""
        if isinstance(options, TaskOptions):
            self.extra = {"task_ids": torch.tensor([options.task_index])}
        if artifact.kind == "peft":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of tied heads: the comparison tells whether all is well
                    self.model = PeftModel.from_pretrained(self.base, str(artifact.folder), local_files_only=True)
                self.model.eval()
            except (ValueError, RuntimeError, TypeError, KeyError) as error:
                raise EdgeftError(f"{artifact.folder}: PEFT cannot load it on this base "
                                  f"({' '.join(str(error).split())[:300]})") from None
        elif artifact.kind == "learned" and method is not None:
            self.model = method.attach(self.base, options).eval()
            learned = {name: torch.from_numpy(np.array(array)) for name, array in artifact.learned().items()}
            unknown = self.model.load_state_dict(learned, strict=False).unexpected_keys
            if unknown:
                raise EdgeftError(f"{method.name}: collect() names tensors that its attached model does not have "
                                  f"({', '.join(unknown[:3])}), so they cannot be checked against torch.")

    @contextmanager
    def only_base(self) -> Iterator[None]:
        """Switch the adapter off while inside."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            yield

    def fold(self) -> None:
        """Merge the adapter by PEFT's own code."""
        if isinstance(self.model, PeftModel):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.base = self.model.merge_and_unload()
            self.model = self.base

    @torch.no_grad()
    def blend(self, start: PreTrainedModel, scale: float) -> None:
        """Go only a part of the way from the untouched base to what was folded in."""
        before = dict(start.named_parameters(remove_duplicate=False))
        for name, parameter in self.base.named_parameters():
            parameter.copy_(before[name] + scale * (parameter - before[name]))

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], new: int) -> list[int]:
        """Greedy tokens after a prompt, ended by the first end-of-sequence token."""
        if self.soft:
            return self._greedy_without_cache(ids, new)
        output = self.model(input_ids=torch.tensor([list(ids)]), use_cache=True)
        tokens: list[int] = []
        while True:
            tokens.append(int(output.logits[0, -1].argmax()))
            if len(tokens) == new or tokens[-1] in self.eos:
                return tokens
            output = self.model(input_ids=torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values,
                                use_cache=True)

    def _greedy_without_cache(self, ids: Sequence[int], new: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < new and not (tokens and tokens[-1] in self.eos):
            tokens.append(int(self.logits([*ids, *tokens])[-1].argmax()))
        return tokens

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits [seq, vocab] of one sequence, without those of a soft prompt before it."""
        logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False, **self.extra).logits[0, -len(ids):]
        return logits.float().numpy()

    @torch.inference_mode()
    def keys_values(self, embeddings: np.ndarray[Any, Any]) -> dict[int, tuple[np.ndarray[Any, Any], ...]]:
        """What the base's caches hold after input embeddings [n, hidden]: layer -> (k, v) [kv_heads, n, head_dim]."""
        inputs = torch.from_numpy(np.array(embeddings, np.float32))[None]
        cache = self.base(inputs_embeds=inputs, use_cache=True).past_key_values
        return {index: tuple(part[0].float().numpy() for part in (layer.keys, layer.values))
                for index, layer in enumerate(cache.layers)}

    def round(self, quant: Quant, modules: Sequence[str]) -> None:
        """Put the base's weights on what a bundle stores them as, in place."""
        if quant.bits:
            self.put_on_grid(quant, modules)
        elif quant.kind == "fp16":
            self.halve(modules)

    def put_on_grid(self, quant: Quant, modules: Sequence[str]) -> None:
        """Round the base's weights to the device's grid, in place."""
        linears = [_inner(self.base.get_submodule(name)) for name in modules]
        done: set[int] = set()
        embedding = self.base.get_input_embeddings()
        for module in [*linears, embedding]:
            weight = module.weight
            if id(weight) not in done:
                turned = not isinstance(module, (nn.Linear, nn.Embedding))  # gpt2's Conv1D keeps [in, out]
                rows = weight.detach().numpy().T if turned else weight.detach().numpy()
                grid = quant.quantize(np.ascontiguousarray(rows)).dequantize()
                with torch.no_grad():
                    weight.copy_(torch.from_numpy(grid.T if turned else grid))
                done.add(id(weight))

    def halve(self, modules: Sequence[str]) -> None:
        """Round the base's weights to float16, in place."""
        linears = [_inner(self.base.get_submodule(name)) for name in modules]
        for module in [*linears, self.base.get_input_embeddings()]:
            with torch.no_grad():
                module.weight.copy_(module.weight.half().float())


def _inner(module: Any) -> Any:
    """The base's own layer under PEFT's wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
