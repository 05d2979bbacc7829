"""A model's sizes: from config.json and the headers of its weights, or from a bundle. No weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .base import find_base, read_config
from .bundle import MANIFEST, Bundle, SlotGroup, read_bundle
from .errors import EdgeftError, UsageError
from .files import read_json
from .grid import Quant
from .heads import ENCODERS, config_labels, max_tokens
from .tensors import INDEX, TensorFile, Weights

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite", "olmo2", "smollm3")  # alike in layers
TOGETHER: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # one input
HEAD = "lm_head"


@dataclass(frozen=True)
class Shape:
    """What memory and speed depend on. Counts are of numbers, not of bytes."""

    name: str
    architecture: str
    groups: tuple[SlotGroup, ...]  # linear layers, those that read one input together; without the head
    table: int  # the embedding of tokens
    head: int  # the output head; 0 for models without one
    tied: bool  # the head is the embedding
    rest: int  # norms, biases, positions: floats on every grid
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    encodes: bool = False
    tokenizer: int = 0  # bytes of tokenizer.json

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the head."""
        return sum(group.in_features * sum(group.out_features) for group in self.groups)

    @property
    def widest(self) -> int:
        """The most numbers that one token is between two layers."""
        return max((sum(group.out_features) for group in self.groups), default=self.hidden)

    @property
    def cached(self) -> int:
        """Numbers of keys and values that a token leaves behind; an encoder leaves none."""
        return 0 if self.encodes else 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Recorded:
    """What a bundle has decided already."""

    quant: Quant
    context: int
    slots: bool  # whether adapters may stand beside its base
    adapters: int = 0  # 1 where it has a default adapter
    adapter: int = 0  # bytes of that in memory
    rank: int = 16


def read_shape(source: str | Path) -> tuple[Shape, Recorded | None]:
    """A model's sizes, and with a bundle what it was exported with; EdgeftError for what is neither."""
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        return _of_bundle(folder)
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"{folder}: is a PEFT adapter. Name its base; --adapters and --rank count what stands beside.")
    base = find_base(str(source))
    return shape_of(base, read_config(base)), None


def shape_of(folder: Path, stored: Mapping[str, Any]) -> Shape:
    """From a model folder and its config; without weights the layers of a common decoder are worked out."""
    config: Any = SimpleNamespace(**{"model_type": "", "pad_token_id": None,
                                     **(stored.get("text_config") or {}), **stored})
    hidden = _whole(folder, config, "hidden_size", "n_embd", "dim")
    heads = _whole(folder, config, "num_attention_heads", "n_head", "n_heads")
    layers = _whole(folder, config, "num_hidden_layers", "n_layer", "n_layers")
    vocabulary = _whole(folder, config, "vocab_size")
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    shapes = _shapes(folder, config, hidden, heads * head_dim, kv_heads * head_dim, layers, vocabulary)
    linears, table, head, rest = _sorted(shapes, vocabulary, config.model_type == "gpt2")
    encodes = config.model_type in ENCODERS
    generates = not encodes and not config_labels(dict(stored))
    if not linears or not table:
        raise EdgeftError(f"{folder}: has no linear layers or no embedding of {vocabulary:,} tokens among its "
                          f"{len(shapes)} tensors: it is no language model that edgeft knows.")
    return Shape(name=folder.resolve().name, architecture=config.model_type, groups=tuple(_together(linears)),
                 table=table, head=(head or table) if generates else 0, tied=not head, rest=rest, layers=layers,
                 hidden=hidden, heads=heads, kv_heads=int(kv_heads), head_dim=int(head_dim), vocabulary=vocabulary,
                 context=max_tokens(config), encodes=encodes, tokenizer=_size(folder / "tokenizer.json"))


def _whole(folder: Path, config: Any, *names: str) -> int:
    """The first of these that the config has; a positive whole number."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            if type(value) is not int or value < 1:
                raise EdgeftError(f"{folder}/config.json: {name} must be a positive whole number, found {value!r}.")
            return value
    raise EdgeftError(f"{folder}/config.json: has no {names[0]}: it is no language model's.")


def _shapes(folder: Path, config: Any, hidden: int, queries: int, keys: int, layers: int,
            vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes, from headers; of a config alone, those of a decoder with gated layers."""
    if (folder / "model.safetensors").is_file() or (folder / INDEX).is_file():
        weights = Weights(folder)
        return {name: weights.shape(name) for name in weights}
    if config.model_type not in GATED:
        Weights(folder)  # tells what it lacks
    wide = _whole(folder, config, "intermediate_size")
    parts = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
             "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (wide, hidden),
             "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    found: dict[str, tuple[int, ...]] = {f"model.layers.{layer}.{part}.weight": shape for layer in range(layers)
                                         for part, shape in parts.items()}
    found |= {f"model.layers.{layer}.norm.weight": (2 * hidden,) for layer in range(layers)}
    found["model.embed_tokens.weight"] = (vocabulary, hidden)
    if not getattr(config, "tie_word_embeddings", False):
        found[f"{HEAD}.weight"] = (vocabulary, hidden)
    return found


def _sorted(shapes: Mapping[str, tuple[int, ...]], vocabulary: int,
            turned: bool) -> tuple[dict[str, tuple[int, int]], int, int, int]:
    """Linear layers by module as (in, out), then numbers of the embedding, the head, and all else."""
    linears: dict[str, tuple[int, int]] = {}
    table = head = rest = 0
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        last, count = module.rpartition(".")[2], math.prod(shape)
        if len(shape) != 2 or kind != "weight" or min(shape) < 1:
            rest += count
        elif last == HEAD or last == "embed_out":
            head = count
        elif re.search(r"emb|^wte$|^wpe$|^shared$", last):
            rows = shape[0] == vocabulary and not table
            table, rest = (count, rest) if rows else (table, rest + count)
        else:
            out, size = reversed(shape) if turned else shape
            linears[module] = size, out
    return linears, table, head, rest


def _together(linears: Mapping[str, tuple[int, int]]) -> list[SlotGroup]:
    """Layers that read one input are one product, as export makes them."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for module in linears:
        parent, _, last = module.rpartition(".")
        kind: tuple[str, ...] = next((kind for kind in TOGETHER if last in kind), (last,))
        groups.setdefault((parent, kind), []).append(module)
    for (_, kind), modules in groups.items():
        modules.sort(key=lambda module: kind.index(module.rpartition(".")[2]))  # headers are in the alphabet's order
    return [SlotGroup(modules[0], tuple(modules), linears[modules[0]][0],
                      tuple(linears[module][1] for module in modules)) for modules in groups.values()]


def _of_bundle(folder: Path) -> tuple[Shape, Recorded]:
    bundle = read_bundle(folder)
    manifest, task = bundle.manifest, bundle.manifest.get("task", "text-generation")
    groups = [group for group in bundle.linears if HEAD not in group.modules]
    linear = sum(group.in_features * sum(group.out_features) for group in groups)
    try:
        model = read_json(folder / "genai_config.json")["model"] if task == "text-generation" else {}
        decoder = model.get("decoder", {})
        hidden = int(decoder.get("hidden_size") or groups[0].in_features)
        vocabulary = int(model.get("vocab_size") or 0)
        layers = int(decoder.get("num_hidden_layers") or len(bundle.prefix_layers) or 0)
        heads = int(decoder.get("num_attention_heads") or 1)
        kv_heads, head_dim = int(decoder.get("num_key_value_heads") or 1), int(decoder.get("head_size") or hidden)
        parameters = int(manifest["base"]["parameters"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EdgeftError(f"{folder}: does not tell its sizes ({error}). Name the model folder it was made of.") \
            from None
    table = vocabulary * hidden or max(parameters - linear, 0)
    left = parameters - linear - table
    tied = left < table
    shape = Shape(name=folder.resolve().name, architecture=str(manifest["base"].get("architecture", "")),
                  groups=tuple(groups), table=table, head=table if task == "text-generation" else 0, tied=tied,
                  rest=max(left - (0 if tied else table), 0), layers=layers, hidden=hidden, heads=heads,
                  kv_heads=kv_heads, head_dim=head_dim, vocabulary=vocabulary, context=bundle.context,
                  encodes=manifest["graph"].get("cache") == "none",
                  tokenizer=_size(folder / "tokenizer.json"))
    rank, size = _default_adapter(bundle)
    return shape, Recorded(Quant.from_json(manifest["quant"]), bundle.context, bool(bundle.slots),
                           int(bundle.default_adapter is not None), size, rank)


def _default_adapter(bundle: Bundle) -> tuple[int, int]:
    """The largest rank of a bundle's own adapter, and the bytes of its tensors; (16, 0) without one."""
    if bundle.default_adapter is None:
        return 16, 0
    file = TensorFile(bundle.adapter_file(bundle.default_adapter))
    shapes = {name: file.shape(name) for name in file}
    ranks = [shape[1] for name, shape in shapes.items() if name.endswith(".A")]
    return max(ranks, default=16), 4 * sum(math.prod(shape) for shape in shapes.values())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
