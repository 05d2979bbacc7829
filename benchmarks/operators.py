"""Where the time of one token goes, operator by operator: the contract's graph beside those that the runner takes.

    python benchmarks/operators.py
    python benchmarks/operators.py --shape tiny --tokens 8    to see that it works

Makes a model and a LoRA of rank 16 on every linear layer with ../shared/bench/make_model.py, exports them (or takes
--bundle with --adapter) and decodes --tokens tokens behind a prompt of 128 on each graph, once as it is (`token`) and
once under ONNX Runtime's profiler, which makes every node some microseconds slower. `nodes` are those of one token.
"""

from __future__ import annotations

import collections
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import EDGEFT, SHARED, arguments, machine, need, run, say, start, table, workspace

from edgeft.contract.bundle import DECODE_GRAPH, GRAPH, PLAIN_GRAPH, Bundle, read_bundle
from edgeft.run import packing
from edgeft.run.adapters import open_adapter

PROMPT = 128


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--shape", default="135m", choices=["tiny", "135m", "360m"])
    parser.add_argument("--bundle", type=Path, help="a bundle with --adapter, instead of making one")
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with workspace(args) as work:
        report = measure(args, args.bundle or make(args, work))
    print(json.dumps(report, indent=2) if args.json else describe(report))


def make(args: Any, work: Path) -> Path:
    """A bundle with a LoRA beside it."""
    need(args.maker)
    model, lora, bundle = work / "model", work / "lora", work / "bundle"
    run([sys.executable, args.maker, "--shape", args.shape, "--out", model, "--lora", lora, "--rank", 16])
    run([*EDGEFT, "export", lora, "--base", model, "--name", "lora", "--device", "cpu-x86_64", "--out", bundle])
    return bundle


def measure(args: Any, folder: Path) -> dict[str, Any]:
    """Every graph with and without the adapter."""
    bundle = read_bundle(folder)
    adapter = open_adapter(args.adapter, bundle.adapter_file(args.adapter), bundle)
    own = {**packing.nothing(bundle.slots), **packing.own_matrices(bundle.slots, [(adapter, 1.0)])}
    gated = {**packing.side_by_side(bundle.slots, [adapter]),
             "adapter_gate": packing.gate([adapter], [{args.adapter: 1.0}])}
    cases = {"contract's graph, no adapter": (GRAPH, {}), "plain graph": (PLAIN_GRAPH, {}),
             "contract's graph, LoRA": (GRAPH, gated), "decode graph, LoRA": (DECODE_GRAPH, own)}
    found: dict[str, Any] = {}
    for name, (file, slots) in cases.items():
        say(name)
        quiet, loud = _open(bundle, file, profile=False), _open(bundle, file, profile=True)
        token = statistics.median(_decode(quiet, slots, args.tokens) for _ in range(args.repeats))
        _decode(loud, slots, args.tokens)
        found[name] = {"token_us": token, "operators": _operators(Path(loud.end_profiling()), args.tokens)}
    return {"benchmark": "operators", "machine": machine(), "bundle": folder.name, "graphs": found}


def _open(bundle: Bundle, file: str, *, profile: bool) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = int(bundle.manifest["device"]["cpu"]["threads"])
    settings.log_severity_level, settings.enable_profiling = 3, profile
    settings.profile_file_prefix = str(Path(tempfile.gettempdir()) / "edgeft-operators")
    return ort.InferenceSession(str(bundle.folder / file), settings, providers=["CPUExecutionProvider"])


def _decode(session: ort.InferenceSession, slots: dict[str, Any], tokens: int) -> float:
    """Microseconds of one token behind a prompt, the prompt fed token by token where the graph takes no more."""
    binding, held = session.io_binding(), list[Any]()

    def give(name: str, array: Any) -> Any:
        held.append((array, ort.OrtValue.ortvalue_from_numpy(array)))
        binding.bind_ortvalue_input(name, held[-1][1])
        return held[-1][1]

    for item in session.get_inputs():
        if item.name.startswith("past"):
            both = give(item.name, np.zeros((1, item.shape[1], PROMPT + tokens, item.shape[3]), np.float32))
            binding.bind_ortvalue_output(item.name.replace("past_key_values", "present"), both)
    for name, array in slots.items():
        give(name, array)
    ids, mask = np.full((1, 1), 3, np.int64), np.zeros((1, PROMPT + tokens), np.int64)
    give("input_ids", ids)
    give("attention_mask", mask)
    binding.bind_output("logits", "cpu")
    for position in range(PROMPT + tokens):
        if position == PROMPT:
            began = time.perf_counter()
        mask[0, position] = 1
        session.run_with_iobinding(binding)
    return 1e6 * (time.perf_counter() - began) / tokens


def _operators(file: Path, tokens: int) -> dict[str, dict[str, float]]:
    """Per operator: nodes and microseconds of one token."""
    events = json.loads(file.read_text())
    file.unlink()
    since = [event for event in events if event["name"] == "model_run"][-tokens]["ts"]
    times: dict[str, float] = collections.Counter()
    counts: dict[str, int] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time") and event["ts"] >= since:
            times[event["args"]["op_name"]] += event["dur"]
            counts[event["args"]["op_name"]] += 1
    return {name: {"nodes": counts[name] / tokens, "us": times[name] / tokens}
            for name in sorted(times, key=lambda name: -times[name])}


def describe(report: dict[str, Any]) -> str:
    """Operators down, graphs across."""
    graphs = report["graphs"]
    names = list(dict.fromkeys(name for found in graphs.values() for name in found["operators"]))
    rows = [[name, *(f"{op['nodes']:.0f} / {op['us']:,.0f}" if (op := found["operators"].get(name)) else "-"
                     for found in graphs.values())] for name in names]
    total = ["all under the profiler", *(f"{sum(op['nodes'] for op in found['operators'].values()):.0f} / "
                                         f"{sum(op['us'] for op in found['operators'].values()):,.0f}"
                                         for found in graphs.values())]
    token = ["token, without it", *(f"{found['token_us']:,.0f} us" for found in graphs.values())]
    return f"{report['bundle']}, nodes / microseconds of one token\n\n" + table(
        ["operator", *graphs], [*rows, total, token])


if __name__ == "__main__":
    start(main)
