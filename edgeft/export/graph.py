"""The base graph without its weights: mobius builds it from the config where it can, a trace of the model otherwise.

Either way each initializer of the graph is a view of one Hugging Face tensor, so that weights can be streamed in,
merged or quantized, and slots find their module by name.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from edgeft.contract.errors import EdgeftError
from edgeft.contract.slots import Array

from .lower import declare, finite_masks, lower, not_standard
from .weights import Source

if TYPE_CHECKING:
    import transformers


INPUTS = ("input_ids", "attention_mask")
SETTLED = 18  # operators that decoders have mean the same from this opset to 21


@dataclass(frozen=True)
class Origin:
    """Where an initializer's numbers come from: a strided view of one Hugging Face tensor."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    offset: int

    def read(self, source: Source) -> Array:
        """The numbers, float32."""
        flat = np.ascontiguousarray(source[self.name]).reshape(-1)[self.offset :]
        return np.lib.stride_tricks.as_strided(flat, self.shape, [4 * step for step in self.strides], writeable=False)


@dataclass
class BaseGraph:
    """A decoder's graph with the contract's inputs and outputs, and where each weight comes from."""

    model: ir.Model
    origins: dict[str, Origin]
    builder: str  # "mobius" | "transformers" | "given"
    cache: str  # "shared" | "growing"
    padding: str = "anywhere"  # where rows of a batch may be padded in a growing cache

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(kv_heads, head_dim) of each layer's cache."""
        return [(int(str(value.shape[1])), int(str(value.shape[3]))) for value in self.model.graph.inputs
                if value.shape is not None and str(value.name).endswith(".key")]


def build_graph(config: transformers.PretrainedConfig, load: Callable[[], transformers.PreTrainedModel],
                source: Source, context: int, *, standard: bool = False, given: Path | None = None) -> BaseGraph:
    """The base graph of a config; the torch model is loaded and traced only where mobius cannot build it.

    `standard`: of standard operators of opset 21 alone; a shared cache becomes a growing one then. `given`: an ONNX
    file of the base that others made, to be used instead.
    """
    graph = _from_file(given, config, source, standard) if given else _built(config, load, source, context, standard)
    _share(graph)
    _cut_rotary_tables(graph.model, context)
    return graph


def _from_file(path: Path, config: transformers.PretrainedConfig, source: Source, standard: bool) -> BaseGraph:
    from .given import given_graph

    graph = given_graph(path, config, source)
    if standard and graph.model.opset_imports[""] < SETTLED:
        raise EdgeftError(f"{path.name}: is of opset {graph.model.opset_imports['']}, and the device takes 21; a graph "
                          f"of {SETTLED} or newer means the same there. Export it again with a newer opset.")
    if standard:
        make_standard(graph)
    return graph


def _built(config: transformers.PretrainedConfig, load: Callable[[], transformers.PreTrainedModel], source: Source,
           context: int, standard: bool) -> BaseGraph:
    import mobius

    known = config.model_type in mobius.registry and not misread(config, context)
    graph = _from_mobius(config, source) if known else None
    if graph is not None and standard:
        graph = _lowered(graph)
    if graph is None:
        graph = _from_trace(load(), source)
        if standard:
            make_standard(graph)
    return graph


def _lowered(graph: BaseGraph) -> BaseGraph | None:
    """The same in standard operators, or None where one of its operators has no such form here."""
    if not lower(graph.model):
        return None
    graph.cache = "growing"
    return graph


def make_standard(graph: BaseGraph) -> None:
    """A trace's graph, its masks finite, stated to be of opset 21; EdgeftError where it needs more."""
    finite_masks(graph.model)
    left = not_standard(graph.model.graph)
    if left:
        raise EdgeftError(f"This architecture needs operators that are not in opset 21 ({', '.join(left)}), and the "
                          "device takes no others.")
    declare(graph.model)


def misread(config: transformers.PretrainedConfig, context: int) -> str:
    """Why mobius 0.1 would build another model than this config's; empty where no reason is known."""
    if config.model_type == "gemma3_text":
        return "it takes one rope for both kinds of layers, no window, and the attention's factor from head_dim"
    if config.model_type == "gemma2":
        scale = config.hidden_size**0.5
        if round(scale, 2) != scale:
            return "it rounds the embedding's factor to two decimals"
        if config.sliding_window < context:
            return "it takes the odd layers for the sliding ones"
    return ""


def _from_mobius(config: transformers.PretrainedConfig, source: Source) -> BaseGraph | None:
    """None where mobius' graph has other weights than the base, or inputs that the contract does not have."""
    import mobius
    import torch

    logging.getLogger("mobius").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        values = config.to_dict()
        values["tie_word_embeddings"] = bool(source.tied)  # a merge may have torn a tied head off
        values.pop("quantization_config", None)
        Path(folder, "config.json").write_text(json.dumps(values))
        package = mobius.build(folder, task="text-generation", dtype="f32", load_weights=False,
                               execution_provider="cpu")
    if "model" not in package:
        raise EdgeftError(f"{config.model_type}: mobius makes it of several graphs ({', '.join(package)}); only "
                          "decoders of one graph can be exported.")
    model = package["model"]
    if any(value.name not in INPUTS and not str(value.name).startswith("past_key_values.")
           for value in model.graph.inputs):
        return None  # learned positions come as an input there; a trace derives them from the mask
    tensors = {name: torch.empty(source.shape(name), device="meta") for name in source}
    module = mobius.registry.get(config.model_type)(package.config)
    try:
        mapped = module.preprocess_weights(dict(tensors))
    except (ValueError, KeyError, RuntimeError):  # it looks for weights under other names than this base has
        return None
    origins = {name: _origin(tensor, tensors) for name, tensor in mapped.items() if name in model.graph.initializers}
    for name, value in model.graph.initializers.items():
        origin = origins.get(name)
        if value.const_value is None and (origin is None or list(origin.shape) != list(value.shape or ())):
            return None
    attention = any(node.op_type == "GroupQueryAttention" for node in model.graph)
    return BaseGraph(model, {name: origin for name, origin in origins.items() if origin}, "mobius",
                     "shared" if attention else "growing")


def _origin(tensor: Any, tensors: dict[str, Any]) -> Origin | None:
    """Recognise a view of a base tensor by torch's own account of it; None for a computed one."""
    for name, whole in tensors.items():
        if tensor is whole or tensor._base is whole:
            return Origin(name, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())
    return None


def _from_trace(model: transformers.PreTrainedModel, source: Source) -> BaseGraph:
    from .trace import PADDING, CannotTrace, trace

    if source.torn:
        untie(model)
    try:
        traced = trace(model)
    except CannotTrace as error:
        raise EdgeftError(f"This architecture cannot become a graph: {error}") from None
    origins: dict[str, Origin] = {}
    for name, value in traced.graph.initializers.items():
        if name in set(source):
            shape = tuple(int(str(size)) for size in value.shape or ())
            strides = tuple(int(np.prod(shape[index + 1 :])) for index in range(len(shape)))
            origins[name] = Origin(name, shape, strides, 0)
            value.const_value = None
    return BaseGraph(traced, origins, "transformers", "growing", traced.metadata_props.get(PADDING, "nowhere"))


def untie(model: transformers.PreTrainedModel) -> None:
    """Give a tied head weights of its own, for a change of one of the two alone."""
    import torch

    head, embedding = cast(Any, model.get_output_embeddings()), cast(Any, model.get_input_embeddings())
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _share(graph: BaseGraph) -> None:
    """One initializer where the graph has two for the same numbers: a tied head beside its embedding."""
    first: dict[Origin, str] = {}
    for name, origin in list(graph.origins.items()):
        kept = first.setdefault(origin, name)
        if kept != name:
            initializers = graph.model.graph.initializers
            ir.convenience.replace_all_uses_with(initializers[name], initializers[kept])
            del initializers[name], graph.origins[name]


def _cut_rotary_tables(model: ir.Model, context: int) -> None:
    """Keep only the positions that the device's context can reach: for a 128k model that is most of a table."""
    for name, value in model.graph.initializers.items():
        if name.endswith(("cos_cache", "sin_cache")) and value.const_value is not None:
            table = value.const_value.numpy()
            if len(table) > context:
                value.const_value = ir.tensor(np.ascontiguousarray(table[:context]), name=name)
                value.shape = ir.Shape(table[:context].shape)
