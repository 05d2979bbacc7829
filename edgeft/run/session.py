"""One ONNX Runtime session over a bundle's graph, and the key/value caches of a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import GRAPH, Bundle
from edgeft.contract.errors import EdgeftError

PREFILL_CHUNK = 512  # tokens in one pass over a long prompt: bounds the memory of its logits

ort.set_default_logger_severity(3)  # one warning per optional input is 400 lines that scare people


class Session:
    """The graph, ready to run: `forward` takes a batch of tokens through it."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
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
            self.ort = ort.InferenceSession(str(bundle.folder / GRAPH), settings, providers=[(provider, options)])
        except Exception as error:  # onnxruntime raises its own kinds, none of them documented
            raise EdgeftError(f"{bundle.folder}: onnxruntime cannot open the graph "
                              f"({str(error).splitlines()[0]})") from None
        self.context = int(bundle.manifest["context"])
        shapes = {item.name: item.shape for item in self.ort.get_inputs()}
        self.layers = [(shapes[name][1], shapes[name][3]) for name in shapes
                       if re.fullmatch(r"past_key_values\.\d+\.key", name)]
        self.vocabulary = int(self.ort.get_outputs()[0].shape[2])
        self.padding = bundle.manifest["graph"].get("padding", "anywhere")
        self.shared = bundle.manifest["graph"]["cache"] == "shared"

    def cache(self, rows: int, capacity: int) -> Cache:
        """Empty caches for a batch: `rows` sequences of at most `capacity` tokens each."""
        if capacity > self.context:
            raise EdgeftError(f"{capacity} tokens are wanted and the bundle's context is {self.context}.")
        return (SharedCache if self.shared else GrowingCache)(self, rows, capacity)


class Cache:
    """Keys and values of a batch, and the binding that runs the graph on them."""

    def __init__(self, session: Session, rows: int, capacity: int) -> None:
        self.session, self.rows, self.capacity = session, rows, capacity
        self.lengths = np.zeros(rows, np.int64)  # tokens held per row
        self.binding = session.ort.io_binding()
        self._step_logits = ort.OrtValue.ortvalue_from_shape_and_type((rows, 1, session.vocabulary), np.float32)
        self._view = self._step_logits.numpy()

    def bind_slots(self, values: dict[str, ort.OrtValue]) -> None:
        """Give slot inputs their adapters; inputs left out keep their zeros, which change nothing."""
        for name, value in values.items():
            self.binding.bind_ortvalue_input(name, value)

    def forward(self, ids: np.ndarray[Any, Any], counts: Sequence[int]) -> np.ndarray[Any, Any]:
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

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Take one prompt per row in; logits [rows, vocab] after each row's last token."""
        if len(prompts) == 1:
            for start in range(0, len(prompts[0]), PREFILL_CHUNK):
                part = prompts[0][start : start + PREFILL_CHUNK]
                logits = self.forward(np.asarray([part], np.int64), [len(part)])
            return np.array(logits[:, -1])
        counts = [len(prompt) for prompt in prompts]
        if not self.session.shared and len(set(counts)) > 1 and self.session.padding != "anywhere":
            raise EdgeftError("This model takes only prompts of one length in a batch; ask one at a time.")
        ids = np.zeros((len(prompts), max(counts)), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        logits = self.forward(ids, counts)
        return logits[np.arange(len(prompts)), np.asarray(counts) - 1]

    def _bind(self, ids: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
        raise NotImplementedError

    def _after(self, counts: Sequence[int]) -> None:
        raise NotImplementedError

    def _logits_position(self) -> int:
        return 2 * len(self.session.layers)  # outputs come in the order in which they were bound, logits last


class SharedCache(Cache):
    """For GroupQueryAttention: one buffer per layer, past and present at once; nothing is copied per token.

    Rows may differ in length: each row's share of the mask says where its next key is written.
    """

    def __init__(self, session: Session, rows: int, capacity: int) -> None:
        super().__init__(session, rows, capacity)
        self.buffers: dict[str, ort.OrtValue] = {}
        for layer, (heads, size) in enumerate(session.layers):
            for part in ("key", "value"):
                value = ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, capacity, size), np.float32))
                self.buffers[f"{layer}.{part}"] = value
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self.binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._ones = np.ones((1, capacity), np.int64)

    def _bind(self, ids: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
        after = self.lengths + counts
        total = int(after.max())
        if total > self.capacity:
            raise EdgeftError(f"The cache holds {self.capacity} tokens, and {total} are wanted.")
        mask = self._ones[:, :total] if self.rows == 1 \
            else (np.arange(total) < after[:, None]).astype(np.int64)
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("attention_mask", mask)
        self._kept = (ids, mask)  # the binding holds addresses only

    def _after(self, counts: Sequence[int]) -> None:
        self.lengths += np.asarray(counts)


class GrowingCache(Cache):
    """For traced graphs: past in, a longer present out; what a row lacks in length the mask hides for good."""

    def __init__(self, session: Session, rows: int, capacity: int) -> None:
        super().__init__(session, rows, capacity)
        self.past = {f"{layer}.{part}": ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, 0, size), np.float32))
                     for layer, (heads, size) in enumerate(session.layers) for part in ("key", "value")}
        self.mask = np.zeros((rows, 0), np.int64)

    def _bind(self, ids: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
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
        self.lengths += np.asarray(counts)
