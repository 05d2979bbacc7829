"""The graphs of a bundle, opened in ONNX Runtime when a step needs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeft.contract.bundle import (
    DECODE_GRAPH,
    GRAPH,
    GRAPH_DATA,
    LOGITS_TO_KEEP,
    PLAIN_GRAPH,
    PREFILL_GRAPH,
    SCALED_GRAPH,
    SLOTS_GRAPH,
    Bundle,
)
from edgeft.contract.errors import EdgeftError

from .pages import let_go
from .prepared import Prepared, find_prepared, open_graph
from .provider import CPU, FREEZES, Provider, Wanted, check_placed, choose, settings_for
from .weights import WeightsCheck, exported_weights

Array = np.ndarray[Any, Any]
# Each of these can do what those before it do, at a higher price per token.
LADDER = [PLAIN_GRAPH, PREFILL_GRAPH, SLOTS_GRAPH, GRAPH, SCALED_GRAPH]
ROWS = (PREFILL_GRAPH, DECODE_GRAPH)  # where a row brings its own matrices

ort.set_default_logger_severity(3)  # one warning per optional input is 400 lines that scare people


class Session:
    """One open graph."""

    def __init__(self, bundle: Bundle, file: str, threads: int, prepared: Prepared | None = None,
                 provider: Provider = (CPU, {})) -> None:
        self.file = file
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        try:
            self.ort = open_graph(bundle, prepared, file, settings_for(provider[0], settings), [provider])
        except EdgeftError:
            raise
        except Exception as error:  # onnxruntime raises its own kinds, none of them documented
            raise EdgeftError(f"{bundle.folder}: onnxruntime cannot open {file} "
                              f"({str(error).splitlines()[0]})") from None
        check_placed(bundle.folder / file, provider[0], self.ort)
        self.inputs = {item.name: item.shape
                       for item in (*self.ort.get_inputs(), *self.ort.get_overridable_initializers())}
        self.outputs = {item.name: item.shape for item in self.ort.get_outputs()}
        self.required = {item.name for item in self.ort.get_inputs()}
        self.keeps = LOGITS_TO_KEEP in self.inputs
        self.slotted = any(name.endswith((".A", ".scale")) for name in self.inputs)

    def fill(self, slots: Mapping[str, Array]) -> dict[str, Array]:
        """What goes into the slots: these values, and where an input is required and none is given, no change."""
        made = {name: value for name, value in defaults(self).items() if name in self.required}
        if LOGITS_TO_KEEP in self.required:
            made[LOGITS_TO_KEEP] = np.zeros(1, np.int64)  # of all tokens
        return {**made, **slots}

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(kv_heads, head_dim) of each layer's cache."""
        return [(shape[1], shape[3]) for name, shape in self.inputs.items()
                if re.fullmatch(r"past_key_values\.\d+\.key", name)]


def defaults(session: Session) -> dict[str, Array]:
    """What a slot of the contract's graph holds when no adapter is bound to it."""
    made = {}
    for name, shape in session.inputs.items():
        if name == "adapter_gate" or name.endswith(".scale"):
            made[name] = np.ones((1, 1, 1), np.float32)
        elif name.endswith((".A", ".B")):
            first = name.endswith(".A")
            rank = str(shape[1 if first else 0])
            count = int(rank.rpartition("x")[2]) if "x" in rank else 1
            made[name] = np.zeros((shape[0], count) if first else (count, shape[1]), np.float32)
    return made


class Graphs:
    """What is open of a bundle.

    `several`: a graph for each kind of step stays open. That is for prepared weights, which all of them share;
    without, each would hold a copy, so one at a time is open and does all that was asked for so far.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, *, several: bool = False,
                 provider: Wanted = None, weights: WeightsCheck | None = None) -> None:
        self.bundle = bundle
        device = bundle.manifest["device"]
        self.threads = threads or int(device["cpu"]["threads"])
        self.provider = choose(bundle, provider)
        self.prepared = find_prepared(bundle) if self.provider[0] == CPU else None
        self.weights, self._proven = self._weights(weights), False
        self.several = several or self.prepared is not None
        self.frugal, self._last = False, ""  # frugal: give back what another graph mapped; costs some ms a switch
        files = set(bundle.manifest["files"])
        self.ladder = [file for file in LADDER if file in files]
        self._decodes = DECODE_GRAPH in files
        self._open: dict[str, Session] = {}
        graph = bundle.manifest["graph"]
        self.shared, self.padding = graph["cache"] == "shared", graph.get("padding", "anywhere")
        self.static: dict[str, Any] = graph.get("static") or {}  # of fixed shapes: what export/static.py says of them
        self.several = self.several or bool(self.static)
        if self.prepared is None:
            self.weights.start()  # beside the opening, which takes longer
        self._last = str(self.static["decode"]) if self.static else self.ladder[0]
        first = self._start(self._last)
        self.weights.start()
        self.layers, self.outputs = first.layers, first.outputs
        self.vocabulary = int(first.outputs["logits"][2]) if "logits" in first.outputs else 0

    def _weights(self, exported: WeightsCheck | None) -> WeightsCheck:
        """Of the file that the graphs will map."""
        if self.prepared is None:
            return exported or exported_weights(self.bundle)
        name = self.prepared.weights
        return WeightsCheck(self.prepared.folder, name, self.prepared.files[name])

    @property
    def opened(self) -> list[str]:
        """Files of the graphs that are open."""
        return list(self._open)

    @property
    def weight_bytes(self) -> int:
        """What the weights take, prepacked."""
        return (self.bundle.folder / GRAPH_DATA).stat().st_size

    def for_step(self, kind: str, *, single: bool) -> Session:
        """For a pass of rows with adapters of this kind ("", "lowrank" or "scale"); `single`: one token a row."""
        return self.get(self._file(kind, single))

    def reopens(self, kind: str, *, single: bool) -> bool:
        """Whether the graph that is open has to be closed for such a pass."""
        file = self._file(kind, single)
        return not self.several and all(self.ladder.index(open_) < self.ladder.index(file) for open_ in self._open)

    def _file(self, kind: str, single: bool) -> str:
        if kind == "lowrank" and PREFILL_GRAPH in self.ladder:
            return DECODE_GRAPH if single and self.several and self._decodes else PREFILL_GRAPH
        with_slots = SLOTS_GRAPH if SLOTS_GRAPH in self.ladder else GRAPH
        return self.ladder[0] if not kind else with_slots if kind == "lowrank" else SCALED_GRAPH

    def for_batch(self, *, scaled: bool) -> Session:
        """The contract's graph, for rows that go in together whatever their adapters."""
        return self.get(SCALED_GRAPH if scaled else GRAPH if self.provider[0] not in FREEZES else
                        self._file("lowrank", single=False))

    def get(self, file: str) -> Session:
        """This graph, or without `several` the open one if that can do as much.

        No pass is made over weights that are not the recorded ones: those as exported were hashed while the graph was
        opened; prepared ones, which open in less time than that takes, are waited for here.
        """
        if not self._proven:
            self.weights.wait()
            self._proven = True
        if self.frugal and self.prepared is not None and self._last not in ("", file):
            let_go(self.prepared.folder)  # pages of another graph's mapping would count beside this one's
        self._last = file
        if file in self._open:
            return self._open[file]
        if not self.several and self._open:
            (held,) = self._open.values()
            if self.ladder.index(held.file) > self.ladder.index(file):
                return held
            del self._open[held.file]  # its memory is free before the other one is opened
            name = held.file
            del held
            try:
                return self._start(file)
            except EdgeftError:
                self._start(name)
                raise
        return self._start(file)

    def _start(self, file: str) -> Session:
        session = Session(self.bundle, file, self.threads, self.prepared, self.provider)
        if self.provider[0] in FREEZES and session.slotted and not session.required.issuperset(defaults(session)):
            raise EdgeftError(f"{self.bundle.folder}: {self.provider[0]} takes the optional inputs of {file} for "
                              "constants, so that an adapter would change nothing. Export it for a device of this "
                              "provider.")
        if self.prepared is None:
            self.weights.wait()
        self._open[file] = session
        if self.prepared is not None:
            let_go()  # opening read the weights as exported, too
        return session
