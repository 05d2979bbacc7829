"""One ONNX Runtime session over a bundle's graph, and the key/value caches of a batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import GRAPH, SCALED_GRAPH, Bundle
from edgeft.contract.errors import EdgeftError

PREFILL_CHUNK = 512  # tokens in one pass over a long prompt: bounds the memory of its logits

ort.set_default_logger_severity(3)  # one warning per optional input is 400 lines that scare people


Array = np.ndarray[Any, Any]
Prefix = Mapping[int, tuple[Array, Array]]  # layer -> (k, v) [kv_heads, n, head_dim]


@dataclass(frozen=True)
class Slots:
    """What a batch's adapters put into the graph's slots; what is left out keeps the defaults, which change nothing."""

    shared: Mapping[str, ort.OrtValue] = field(default_factory=dict)  # one value for the whole batch
    rows: Mapping[str, Array] = field(default_factory=dict)  # [rows, ...]: a value per row
    prefixes: Sequence[Prefix] = ()  # per row; empty for a row without a soft prompt

    @property
    def scaled(self) -> bool:
        """Whether the scaled graph is needed."""
        return any(name.endswith(".scale") for name in self.rows)

    @property
    def lengths(self) -> list[int]:
        """Rows of the cache that each row's soft prompt fills."""
        return [prefix[0][0].shape[1] if prefix else 0 for prefix in self.prefixes]

    def row(self, row: int) -> Slots:
        """Of one row of the batch alone."""
        return Slots(self.shared, {name: array[row : row + 1] for name, array in self.rows.items()},
                     self.prefixes[row : row + 1])


class Session:
    """A graph, ready to run; `scaled` is the one that has `scale` slots."""

    def __init__(self, bundle: Bundle, threads: int | None = None, *, scaled: bool = False) -> None:
        self.bundle, self.scaled = bundle, scaled
        device = bundle.manifest["device"]
        self.threads = threads or int(device["cpu"]["threads"])
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        provider, options = device["run"]["provider"], dict(device["run"]["options"])
        if provider not in ort.get_available_providers():
            raise EdgeftError(f"{bundle.folder}: wants {provider}, and this onnxruntime has "
                              f"{', '.join(ort.get_available_providers())}.")
        try:
            graph = bundle.folder / (SCALED_GRAPH if scaled else GRAPH)
            self.ort = ort.InferenceSession(str(graph), settings, providers=[(provider, options)])
        except Exception as error:  # onnxruntime raises its own kinds, none of them documented
            raise EdgeftError(f"{bundle.folder}: onnxruntime cannot open the graph "
                              f"({str(error).splitlines()[0]})") from None
        self.context = bundle.context
        shapes = {item.name: item.shape for item in self.ort.get_inputs()}
        self.layers = [(shapes[name][1], shapes[name][3]) for name in shapes
                       if re.fullmatch(r"past_key_values\.\d+\.key", name)]
        self.vocabulary = int(self.ort.get_outputs()[0].shape[2])
        self.padding = bundle.manifest["graph"].get("padding", "anywhere")
        self.shared = bundle.manifest["graph"]["cache"] == "shared"

    def cache(self, rows: int, capacity: int, slots: Slots | None = None) -> Cache:
        """Caches for a batch of `rows` sequences of at most `capacity` tokens each, soft prompts included."""
        if capacity > self.context:
            raise EdgeftError(f"{capacity} tokens are wanted and the bundle's context is {self.context}.")
        return (SharedCache if self.shared else GrowingCache)(self, rows, capacity, slots or Slots())


class Cache:
    """Keys and values of a batch, soft prompts included, and the binding that runs the graph on them."""

    def __init__(self, session: Session, rows: int, capacity: int, slots: Slots) -> None:
        self.session, self.rows, self.capacity, self.slots = session, rows, capacity, slots
        self.lengths = np.asarray(slots.lengths or [0] * rows, np.int64)  # tokens held per row
        if int(self.lengths.max()) >= capacity:
            raise EdgeftError(f"The soft prompt takes {self.lengths.max()} tokens, and the cache holds {capacity}: "
                              "no room is left for a prompt.")
        self.binding = session.ort.io_binding()
        for name, value in slots.shared.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, array in slots.rows.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._step_logits = ort.OrtValue.ortvalue_from_shape_and_type((rows, 1, session.vocabulary), np.float32)
        self._view = self._step_logits.numpy()

    def forward(self, ids: Array, counts: Sequence[int]) -> Array:
        """Take ids [rows, seq] in, of which row i has counts[i] real ones on the left; logits [rows, seq, vocab].

        The logits of a single step stand in a buffer that the next call overwrites.
        """
        self._bind(ids, np.asarray(counts))
        if ids.shape[1] == 1:
            self.binding.bind_ortvalue_output("logits", self._step_logits)
            self.session.ort.run_with_iobinding(self.binding)
            logits = self._view
        else:
            self.binding.bind_output("logits", "cpu")
            self.session.ort.run_with_iobinding(self.binding)
            logits = self.binding.get_outputs()[self._logits_position()].numpy()
        self._after(counts)
        return logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Take one prompt per row in; logits [rows, vocab] after each row's last token."""
        raise NotImplementedError

    def _prefill_chunks(self, prompt: Sequence[int]) -> Array:
        for start in range(0, len(prompt), PREFILL_CHUNK):
            part = prompt[start : start + PREFILL_CHUNK]
            logits = self.forward(np.asarray([part], np.int64), [len(part)])
        return np.array(logits[:, -1])

    def _bind(self, ids: Array, counts: Array) -> None:
        raise NotImplementedError

    def _after(self, counts: Sequence[int]) -> None:
        self.lengths += np.asarray(counts)

    def _logits_position(self) -> int:
        return 2 * len(self.session.layers)  # outputs come in the order in which they were bound, logits last


class SharedCache(Cache):
    """For GroupQueryAttention: one buffer per layer, past and present at once; nothing is copied per token.

    Rows may differ in length: each row's share of the mask says where its next key is written.
    """

    def __init__(self, session: Session, rows: int, capacity: int, slots: Slots,
                 buffers: Mapping[tuple[int, str], Array] | None = None) -> None:
        super().__init__(session, rows, capacity, slots)
        if buffers is None:
            buffers = {(layer, part): np.zeros((rows, heads, capacity, size), np.float32)
                       for layer, (heads, size) in enumerate(session.layers) for part in ("key", "value")}
            for row, prefix in enumerate(slots.prefixes):
                for layer, (key, value) in prefix.items():
                    buffers[layer, "key"][row, :, : key.shape[1]] = key
                    buffers[layer, "value"][row, :, : value.shape[1]] = value
        self.buffers = buffers  # the binding holds addresses only
        for (layer, part), buffer in buffers.items():
            both = ort.OrtValue.ortvalue_from_numpy(buffer)
            self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", both)
            self.binding.bind_ortvalue_output(f"present.{layer}.{part}", both)
        self._ones = np.ones((1, capacity), np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """One row after the other: rows differ in length and in what stands before them, and no token is padding."""
        if self.rows == 1:
            return self._prefill_chunks(prompts[0])
        logits = []
        for row, prompt in enumerate(prompts):
            buffers = {place: buffer[row : row + 1] for place, buffer in self.buffers.items()}
            alone = SharedCache(self.session, 1, self.capacity, self.slots.row(row), buffers)
            logits.append(alone.prefill([prompt]))
            self.lengths[row] = alone.lengths[0]
        return np.concatenate(logits)

    def _bind(self, ids: Array, counts: Array) -> None:
        after = self.lengths + counts
        total = int(after.max())
        if total > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {total} are wanted.")
        mask = self._ones[:, :total] if self.rows == 1 \
            else (np.arange(total) < after[:, None]).astype(np.int64)
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("attention_mask", mask)
        self._kept = (ids, mask)  # the binding holds addresses only


class GrowingCache(Cache):
    """For traced graphs: past in, a longer present out; what a row lacks in length the mask hides for good."""

    def __init__(self, session: Session, rows: int, capacity: int, slots: Slots) -> None:
        super().__init__(session, rows, capacity, slots)
        longest = int(self.lengths.max())
        self.past = {}
        for layer, (heads, size) in enumerate(session.layers):
            for part, name in enumerate(("key", "value")):
                array = np.zeros((rows, heads, longest, size), np.float32)
                for row, prefix in enumerate(slots.prefixes):
                    if prefix:
                        array[row, :, : prefix[layer][part].shape[1]] = prefix[layer][part]
                self.past[f"{layer}.{name}"] = ort.OrtValue.ortvalue_from_numpy(array)
        self.mask = (np.arange(longest) < self.lengths[:, None]).astype(np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Array:
        """All rows in one pass, the shorter ones padded on the right; one prompt alone goes in by chunks."""
        if self.rows == 1:
            return self._prefill_chunks(prompts[0])
        counts = [len(prompt) for prompt in prompts]
        if len({*zip(counts, self.lengths.tolist(), strict=True)}) > 1 and self.session.padding != "anywhere":
            raise EdgeftError("This model takes only prompts of one length in a batch; ask one at a time.")
        ids = np.zeros((len(prompts), max(counts)), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        logits = self.forward(ids, counts)
        return logits[np.arange(len(prompts)), np.asarray(counts) - 1]

    def _bind(self, ids: Array, counts: Array) -> None:
        fresh = (np.arange(ids.shape[1]) < counts[:, None]).astype(np.int64)
        self.mask = np.concatenate([self.mask, fresh], axis=1)
        wanted = int((self.lengths + counts).max())  # columns that no row fills cost no position
        if wanted > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {wanted} are wanted.")
        self.binding.clear_binding_outputs()
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("attention_mask", self.mask)
        self._kept = ids
        for name, value in self.past.items():
            self.binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self.binding.bind_output(f"present.{name}", "cpu")

    def _after(self, counts: Sequence[int]) -> None:
        outputs = self.binding.get_outputs()
        self.past = dict(zip(self.past, outputs[: len(self.past)], strict=True))
        super()._after(counts)
