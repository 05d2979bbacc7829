"""What others do with the same work on this machine: onnxruntime-genai on the bundle itself, llama.cpp on a GGUF file.

Each runs in a process of its own, in the interpreter that has it: there this file is a program, so that edgeft need
not be installed beside a peer.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GENAI, LLAMA = "onnxruntime-genai", "llama.cpp"


def compare(bundle: Path, result: Mapping[str, Any], *, python: str | None = None, gguf: Path | None = None,
            gguf_lora: Path | None = None) -> list[dict[str, Any]]:
    """One entry per peer and adapter: prefill, decode (tokens/s), peak_mib; or `missing`, a line that says why not.

    `result` is what `bench` found: the token counts, threads and repeats are the same.
    """
    work = {key: result[key] for key in ("prompt_tokens", "new_tokens", "repeats", "threads")}
    entries = [_ask(python, GENAI, {**work, "folder": str(bundle)})]
    if gguf is None:
        return [*entries, {"peer": LLAMA, "missing": "not run: give it --gguf FILE of the same base"}]
    entries.append(_ask(python, LLAMA, {**work, "model": str(gguf), "lora": None}))
    if gguf_lora is not None and "missing" not in entries[-1]:
        entries.append(_ask(python, LLAMA, {**work, "model": str(gguf), "lora": str(gguf_lora)}))
    return entries


def _ask(python: str | None, peer: str, work: dict[str, Any]) -> dict[str, Any]:
    """Run one peer; whatever goes wrong in it becomes one line."""
    with_adapter = bool(work.get("lora"))
    try:
        done = subprocess.run([python or sys.executable, str(Path(__file__).resolve()), peer, json.dumps(work)],
                              capture_output=True, text=True, check=False, env={**os.environ,
                                                                              "ORT_DISABLE_TELEMETRY": "1"})
    except OSError as error:
        return {"peer": peer, "adapter": with_adapter, "missing": f"{python} cannot be started ({error.strerror})"}
    if done.returncode < 0:
        found: dict[str, Any] = {"missing": f"it was stopped by signal {-done.returncode}: built for another CPU?"}
    elif done.returncode:
        found = {"missing": f"it failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"}
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    return {"peer": peer, "adapter": with_adapter, **found}


def _run_genai(work: Mapping[str, Any]) -> dict[str, float]:
    """The bundle in onnxruntime-genai's own loop, without an adapter."""
    genai, numpy = importlib.import_module("onnxruntime_genai"), importlib.import_module("numpy")
    prompt, new = work["prompt_tokens"], work["new_tokens"]
    config = genai.Config(work["folder"])
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {
        "intra_op_num_threads": work["threads"]}}}}))
    model = genai.Model(config)
    vocabulary = json.loads(Path(work["folder"], "genai_config.json").read_text())["model"]["vocab_size"]
    ids = numpy.asarray([[3 + index % (vocabulary - 3) for index in range(prompt)]], numpy.int32)

    def once() -> tuple[float, float]:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=prompt + new + 2, min_length=prompt + new + 2, do_sample=False)
        generator = genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        return prompt / (middle - start), new / (time.perf_counter() - middle)

    return _medians([once() for _ in range(work["repeats"] + 1)][1:])


def _run_llama(work: Mapping[str, Any]) -> dict[str, float]:
    """The GGUF file through llama.cpp's C interface: no sampler and no text, only llama_decode."""
    import ctypes

    lib, numpy = importlib.import_module("llama_cpp"), importlib.import_module("numpy")
    prompt, new = work["prompt_tokens"], work["new_tokens"]
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(work["model"].encode(), lib.llama_model_default_params())
    if not model:
        return fail(f"{work['model']}: llama.cpp cannot open it")
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch = prompt + new + 64, max(512, prompt)
    params.n_threads = params.n_threads_batch = work["threads"]
    context = lib.llama_init_from_model(model, params)
    if work["lora"]:
        adapter = lib.llama_adapter_lora_init(model, work["lora"].encode())
        if not adapter:
            return fail(f"{work['lora']}: llama.cpp cannot open it")
        lib.llama_set_adapters_lora(context, (lib.llama_adapter_lora_p_ctypes * 1)(adapter), 1,
                                    (ctypes.c_float * 1)(1.0))
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def step(ids: Sequence[int]) -> int:
        array = (lib.llama_token * len(ids))(*ids)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(ids))):
            fail("llama_decode failed")
        return int(numpy.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (vocabulary,)).argmax())

    def once() -> tuple[float, float]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        start = time.perf_counter()
        token = step([3 + index % (vocabulary - 3) for index in range(prompt)])
        middle = time.perf_counter()
        for _ in range(new):
            token = step([token])
        return prompt / (middle - start), new / (time.perf_counter() - middle)

    return _medians([once() for _ in range(work["repeats"] + 1)][1:])


def fail(reason: str) -> Any:
    """End this process with one line."""
    sys.exit(reason)


def _medians(runs: Sequence[tuple[float, float]]) -> dict[str, float]:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return {"prefill": round(statistics.median(run[0] for run in runs), 2),
            "decode": round(statistics.median(run[1] for run in runs), 2),
            "peak_mib": round(int(found[1]) / 1024 if found else 0.0, 1)}


def describe(result: Mapping[str, Any]) -> str:
    """Ours and theirs, with ours as a multiple of theirs; a peer that did not run is one line."""
    there = [entry for entry in result["peers"] if "missing" not in entry]
    ours = {False: result["base"], True: result}
    lines = [f"{'':<26}{'prefill':>10}{'decode':>10}{'peak MiB':>10}   ours by theirs: prefill, decode, MiB"]
    lines += [f"{_label('edgeft', adapter):<26}{ours[adapter]['prefill']:>10,.1f}{ours[adapter]['decode']:>10,.1f}"
              f"{ours[adapter]['peak_mib']:>10,.1f}" for adapter in ((False, True) if result["adapter"] else (False,))]
    for entry in there:
        mine = ours[entry["adapter"]]
        ratios = "  ".join(f"{mine[key] / entry[key]:.2f}" if entry[key] else "-" for key in ("prefill", "decode",
                                                                                            "peak_mib"))
        lines.append(f"{_label(entry['peer'], entry['adapter']):<26}{entry['prefill']:>10,.1f}"
                     f"{entry['decode']:>10,.1f}{entry['peak_mib']:>10,.1f}   {ratios}")
    missing = [f"{entry['peer']}: {entry['missing']}" for entry in result["peers"] if "missing" in entry]
    return "\n".join([*(lines if there else []), *missing])


def _label(name: str, adapter: bool) -> str:
    return f"{name}, adapter" if adapter else name


def charted(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Panels of a chart: what is measured, with a bar for each runtime."""
    rows = [("edgeft", result["base"])] + ([("edgeft, adapter", result)] if result["adapter"] else [])
    rows += [(_label(entry["peer"], entry["adapter"]), entry) for entry in result.get("peers", ())
             if "missing" not in entry]
    panels = [(f"{part}, tokens/s", [(name, float(row[part])) for name, row in rows]) for part in ("prefill", "decode")]
    batch = result.get("batch")
    if batch and "refused" not in batch:
        panels.append((f"{batch['rows']} requests at once, {batch['adapters']} adapters, tokens/s",
                       [("edgeft, all done", batch["tokens_per_s"]), ("edgeft, decode alone", batch["decode"])]))
    panels.append(("peak memory, MiB", [(name, float(row["peak_mib"])) for name, row in rows]))
    return panels


def main() -> None:
    """A peer's process: do the work named on the command line, print JSON."""
    peer, work = sys.argv[1], json.loads(sys.argv[2])
    try:
        print(json.dumps({GENAI: _run_genai, LLAMA: _run_llama}[peer](work)))
    except ImportError as error:
        print(json.dumps({"missing": f"not installed in {sys.executable} ({error})"}))
    except Exception as error:  # a peer's own kinds
        fail(" ".join(str(error).split())[:300] or type(error).__name__)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's modules are not the peer's
    main()
