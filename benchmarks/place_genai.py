"""ONNX Runtime GenAI, in an environment of its own: the bundle as it is, its LoRAs as .onnx_adapter files.

`make genai` makes that environment; EDGEFT_GENAI_PYTHON names another one's interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ADAPTERS = ("lora",)  # it cannot begin with a soft prompt's keys and values
DEFAULT = Path(__file__).resolve().parents[1] / "build" / "genai" / "bin" / "python"


def python() -> Path:
    """The interpreter that has onnxruntime_genai."""
    return Path(os.environ.get("EDGEFT_GENAI_PYTHON") or DEFAULT)


def missing() -> str:
    """What is lacking here."""
    if not python().is_file():
        return f"no {python()}: `make genai` makes it, or EDGEFT_GENAI_PYTHON names an interpreter that has it"
    done = subprocess.run([python(), "-c", "import onnxruntime_genai, numpy"], capture_output=True, text=True,
                          check=False, env=_environment())
    return "" if done.returncode == 0 else f"{python()} has no onnxruntime-genai: `make genai` makes one that has"


def answers(bundle: Path, questions: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Greedy answers of at most so many tokens, and the logits behind each prompt."""
    from edgeft.contract.bundle import GRAPH, SCALED_GRAPH, read_bundle
    from edgeft.run.adapters import open_adapter
    from edgeft.run.genai import SUFFIX, export_adapter

    opened = read_bundle(bundle)
    with tempfile.TemporaryDirectory() as folder:  # the bundle stays as it is
        files, graph = {}, GRAPH
        for name in {question["adapter"] for question in questions if question["adapter"]}:
            files[name] = str(Path(folder, name + SUFFIX))
            adapter = open_adapter(name, opened.adapter_file(name), opened)
            export_adapter(opened, adapter, Path(files[name]))
            graph = SCALED_GRAPH if adapter.scaled else graph
        work, out = Path(folder, "work.json"), Path(folder, "answers.json")
        work.write_text(json.dumps({"bundle": str(bundle), "graph": graph, "adapters": files,
                                    "questions": questions, "tokens": tokens}))
        done = subprocess.run([python(), __file__, work, out], capture_output=True, text=True, check=False,
                              env=_environment())
        if done.returncode:
            raise RuntimeError(f"onnxruntime-genai failed: {done.stderr.strip().splitlines()[-1:]}")
        found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}


def _main() -> None:
    """In the other environment: `place_genai.py WORK.json ANSWERS.json`."""
    import numpy as np
    import onnxruntime_genai as genai

    work = json.loads(Path(sys.argv[1]).read_text())
    setting = genai.Config(work["bundle"])
    setting.overlay(json.dumps({"model": {"decoder": {"filename": work["graph"]}}}))
    model = genai.Model(setting)
    config = json.loads(Path(work["bundle"], "genai_config.json").read_text())["model"]
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    adapters = genai.Adapters(model)
    for name, file in work["adapters"].items():
        adapters.load(file, name)
    found = []
    for question in work["questions"]:
        prompt = question["prompt_tokens"]
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=min(len(prompt) + work["tokens"], config["context_length"]),
                                  do_sample=False)
        generator = genai.Generator(model, params)
        if question["adapter"]:
            generator.set_active_adapter(adapters, question["adapter"])
        generator.append_tokens(np.asarray(prompt, np.int32))
        logits = np.asarray(generator.get_logits()).reshape(-1, config["vocab_size"])[-1]
        while not generator.is_done():
            generator.generate_next_token()
        answer = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        if not answer or (len(answer) < work["tokens"] and answer[-1] not in ends):
            end = int(np.asarray(generator.get_next_tokens())[0])  # it may keep the last token to itself
            answer += [end] if end in ends else []
        found.append({"tokens": answer, "logits": logits.tolist()})
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    _main()
