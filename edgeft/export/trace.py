"""The base graph of an architecture that mobius does not know, traced from the model itself.

Transformers' `OnnxExporter` traces one forward pass that has both a past and several new tokens, so prefill, chunked
prefill and decode are one graph. Two things that its own passes would lose are kept: each weight stays an initializer
under its Hugging Face name (their optimizer folds the transposition of small weights and merges weights of equal value,
such as every fresh layer norm), and each linear stays `MatMul(x, Transpose(weight))` on an input of three dimensions.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

from .traced import canonical_names, gemm_to_matmul, name_values, optimize, unflatten_linears

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    import torch
    import transformers

# The sample that is traced: no size is 0, 1 or equal to another, or torch.export would take it for a constant.
_BATCH, _PAST, _SEQ = 2, 5, 3

# Key in the graph's metadata: where a row may be padded, "anywhere", "left" or "nowhere" (see `trace`).
PADDING = "edgeft.padding"


class CannotTrace(ValueError):
    """The model cannot become a graph with the inputs and outputs that the contract fixes; says why."""


def trace(model: transformers.PreTrainedModel) -> ir.Model:
    """One graph of a float32 decoder, for prefill and decode, weights included.

    Inputs: `input_ids [batch, seq]`, `attention_mask [batch, total]`, `past_key_values.{i}.key|value [batch, kv_heads,
    past, head_dim]` with `total = past + seq` and `past` 0 or more. Outputs: `logits [batch, seq, vocab]`,
    `present.{i}.key|value [batch, kv_heads, total, head_dim]`. Standard operators only (opset 20). The cache grows: a
    present is the past with the new rows behind it, so the same row of every sequence is written at the same place.

    Rows of unequal length: column j of the mask says whether row j of the cache and of the new tokens is real. A row
    may be padded on the left or the right, and padding may stay in the middle: after a right-padded prefill, give
    decode `[1, 1, 1, 0, 0, 1]`, not `[1, 1, 1, 1, 0, 0]` as GroupQueryAttention wants it. A token's position is the
    number of real tokens before it, so padding costs a row no positions, nor a sliding window any of its length.
    Models that count columns by themselves are the exception: padding inside a row (mpt) or any padding (git) counts as
    text there. That is tried on the model, and the graph's metadata says what holds: `edgeft.padding` is "anywhere",
    "left" or "nowhere". Windows longer than the try (gpt_neo's local layers, llama4's chunks) are not seen by it.

    Raises CannotTrace for other dtypes, for layers that hold more than keys and values (recurrent, convolutional), and
    for a model that torch.export specialises to one size. The model is left as it was.
    """
    import torch

    if model.dtype != torch.float32:
        raise CannotTrace(f"{_who(model)}: traced in float32 only, found {model.dtype}. Load it with dtype=float32.")
    training = model.training
    model.eval()
    try:
        with _quiet(), torch.no_grad():
            sample = _sample(model)
            with _contract_forward(model), _matmul_conv1d():
                padding = _exact_padding(model, sample)
                traced = _export(model, sample)
    except CannotTrace:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CannotTrace(f"{_who(model)}: {type(cause).__name__}: {' '.join(str(cause).split())[:400]}") from error
    finally:
        model.train(training)
    weights = set(canonical_names(model).values())
    rows = {str(dim) for dim in traced.graph.inputs[0].shape}
    name_values(traced, model, layers=(len(sample) - 2) // 2)
    optimize(traced, weights)
    gemm_to_matmul(traced)
    unflatten_linears(traced, weights, rows)
    traced.producer_name = "edgeft.export.trace"
    traced.metadata_props[PADDING] = padding
    return traced


def _who(model: transformers.PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _sample(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Inputs to trace with: two rows, one of them padded (a mask of ones would be pruned), and a past."""
    import torch

    total = _PAST + _SEQ
    ids = torch.arange(_BATCH * total).reshape(_BATCH, total) % (model.config.get_text_config().vocab_size - 2) + 1
    mask = torch.ones_like(ids)
    mask[0, 1] = 0
    out = model(input_ids=ids[:, :_PAST], attention_mask=mask[:, :_PAST], use_cache=True)
    sample = {"input_ids": ids[:, _PAST:].clone(), "attention_mask": mask}
    for i, (key, value) in enumerate(_key_values(model, out.get("past_key_values"))):
        # A sliding layer has cut its past to the window: the shapes are its own, the length is everybody's.
        for name, found in (("key", key), ("value", value)):
            sample[f"past_{i}_{name}"] = torch.zeros(_BATCH, found.shape[1], _PAST, found.shape[3])
    return sample


def _key_values(model: transformers.PreTrainedModel, cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer of a cache; refuses a cache that holds anything else."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    layers = getattr(cache, "layers", None)
    if not layers:
        raise CannotTrace(f"{_who(model)}: keeps no cache of keys and values, found {type(cache).__name__}.")
    wrong = {f"{i} ({type(layer).__name__})" for i, layer in enumerate(layers) if type(layer) not in plain}
    if wrong:
        raise CannotTrace(
            f"{_who(model)}: layers {', '.join(sorted(wrong))} keep a state that is not keys and values, "
            "which a graph of ours has no inputs for."
        )
    shapes = {layer.keys.dim() if layer.keys is not None else 0 for layer in layers}
    if shapes != {4}:
        raise CannotTrace(f"{_who(model)}: keys are not [batch, kv_heads, length, head_dim] in every layer.")
    return [(layer.keys, layer.values) for layer in layers]


@contextlib.contextmanager
def _contract_forward(model: transformers.PreTrainedModel) -> Iterator[None]:
    """While inside, `model.forward` takes and gives what the graph does: positions are made from the mask."""
    import torch
    from transformers import masking_utils
    from transformers.cache_utils import DynamicCache, DynamicLayer

    original, own = model.forward, vars(model).get("forward")
    original_overlay = masking_utils.sliding_window_overlay
    positions: list[torch.Tensor] = []
    takes_positions = "position_ids" in inspect.signature(original).parameters

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **past: torch.Tensor) -> dict[str, torch.Tensor]:
        cache = DynamicCache()
        for i in range(len(past) // 2):
            layer = DynamicLayer()
            layer.lazy_initialization(past[f"past_{i}_key"], past[f"past_{i}_value"])
            layer.keys, layer.values = past[f"past_{i}_key"], past[f"past_{i}_value"]
            cache.layers.append(layer)
        rows, total = past["past_0_key"].shape[2], attention_mask.shape[1]
        torch._check(total == rows + input_ids.shape[1])
        positions[:] = [(attention_mask.cumsum(-1) - 1).clamp(min=0)]
        extra = {"position_ids": positions[0][:, rows:]} if takes_positions else {}
        out = original(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **extra
        )
        result = {"logits": out.logits}
        for i, (key, value) in enumerate(_key_values(model, out.past_key_values)):
            result[f"present_{i}_key"], result[f"present_{i}_value"] = key, value
        return result

    def overlay(window: int) -> Any:
        """A sliding window measured in positions, not in columns of the cache: padding inside a row is no distance."""
        return lambda batch, head, query, key: positions[0][batch, key] > positions[0][batch, query] - window

    model.forward = forward
    masking_utils.sliding_window_overlay = overlay
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
        masking_utils.sliding_window_overlay = original_overlay


def _exact_padding(model: transformers.PreTrainedModel, sample: dict[str, torch.Tensor]) -> str:
    """Where a row may be padded and still answer as it does without: tried in two steps. Needs `_contract_forward`."""
    import torch

    ids = torch.cat([sample["input_ids"], sample["input_ids"].flip(1)], dim=1)[:1]

    def last(ids: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
        past = {name: value[:1, :, :0] for name, value in sample.items() if name.startswith("past_")}
        out = model.forward(input_ids=ids[:, :first], attention_mask=mask[:, :first], **past)
        past = {name: out[name.replace("past", "present")] for name in past}
        return model.forward(input_ids=ids[:, first:], attention_mask=mask, **past)["logits"]

    def exact(column: int) -> bool:
        mask = torch.ones_like(ids)
        mask[0, column] = 0
        keep = mask[0].bool()
        padded, alone = last(ids, mask, _SEQ), last(ids[:, keep], mask[:, keep], _SEQ - 1)
        return torch.allclose(padded, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))

    if not exact(0):
        return "nowhere"
    return "anywhere" if exact(_SEQ - 1) else "left"


@contextlib.contextmanager
def _matmul_conv1d() -> Iterator[None]:
    """While inside, a Conv1D (gpt2's linear, its weight [in, out]) multiplies without flattening its input."""
    from transformers.pytorch_utils import Conv1D

    original = Conv1D.forward
    Conv1D.forward = lambda self, x: x.matmul(self.weight) + self.bias
    try:
        yield
    finally:
        Conv1D.forward = original


def _export(model: transformers.PreTrainedModel, sample: dict[str, torch.Tensor]) -> ir.Model:
    """The exporter's graph, not optimized: every size that the contract leaves open is a symbol."""
    from torch.export import Dim
    from transformers.exporters import OnnxConfig, OnnxExporter

    axes = {name: {0: Dim.AUTO, 2 if name.startswith("past_") else 1: Dim.AUTO} for name in sample}
    config = OnnxConfig(dynamic_shapes=axes, optimize=False)
    program = OnnxExporter().export(model, dict(sample), config).program
    found = {value.name: value for value in program.graph.inputs}
    for name, dynamic in axes.items():
        if name not in found:
            raise CannotTrace(f"{_who(model)}: the graph does not use its input {name}.")
        fixed = [axis for axis in dynamic if isinstance(found[name].shape[axis], int)]
        if fixed:
            raise CannotTrace(f"{_who(model)}: {name} {found[name].shape} is fixed to the sample's size, axes {fixed}.")
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn about versions, torchvision and their own internals: none of it is the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
