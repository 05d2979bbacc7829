"""A place where bundles run: OpenVINO's CPU plugin through onnxruntime-openvino, in an environment of its own.

    python benchmarks/place_openvino.py BUNDLE          asks it one question, and prints where its nodes were placed

`answers` is what other programs call. The environment is $EDGEFT_OPENVINO (a Python interpreter), or .venv-openvino in
this folder's parent, which `make openvino` sets up: onnxruntime-openvino takes the place of onnxruntime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import place_python

ROOT = Path(__file__).resolve().parents[1]
EXPORT_DEVICE = "intel-cpu-openvino"  # what a bundle must be exported for: standard operators, slots that must be given
PROVIDER = "OpenVINOExecutionProvider"
# float32, and activations as they are: by itself the plugin rounds them to int8 before a product with int4 weights
ROUNDED = {"INFERENCE_PRECISION_HINT": "f32"}
EXACT = {**ROUNDED, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
Answers = list[dict[str, Any]]


def interpreter() -> Path:
    """The Python that has onnxruntime-openvino."""
    return Path(os.environ.get("EDGEFT_OPENVINO") or ROOT / ".venv-openvino" / "bin" / "python")


def missing() -> str:
    """Empty if this place can be used here; otherwise what to install, and where it is looked for."""
    python = interpreter()
    if not python.is_file():
        return (f"OpenVINO: no interpreter at {python}. Run `make openvino`, or name one that has "
                "onnxruntime-openvino 1.24.1 or newer in EDGEFT_OPENVINO.")
    code = f"import onnxruntime; exit({PROVIDER!r} not in onnxruntime.get_available_providers())"
    done = subprocess.run([python, "-c", code], capture_output=True, check=False)
    return f"OpenVINO: {python} has no onnxruntime with {PROVIDER}. Run `make openvino`." if done.returncode else ""


def answers(bundle: Path, questions: list[dict[str, Any]], tokens: int) -> Answers:
    """Per question {"tokens": greedy answer, "logits": after the prompt's last token}.

    A question is {"prompt_tokens": ids, "adapter": name or None}; an answer ends at an end token, or after `tokens`.
    """
    found: Answers = ask(bundle, questions, tokens)["answers"]
    return found


def ask(bundle: Path, questions: Sequence[dict[str, Any]], tokens: int, *,
        rounded: bool = False) -> dict[str, Any]:
    """`answers`, and `placement`: of each graph that was opened how many nodes each provider runs.

    `rounded`: leave it to the plugin to round activations.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "answers.json")
        job.write_text(json.dumps({"bundle": str(Path(bundle).resolve()), "questions": list(questions),
                                   "tokens": tokens, "rounded": rounded}))
        done = subprocess.run([interpreter(), __file__, "--child", job, out], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        if done.returncode:
            raise RuntimeError(f"{bundle}: OpenVINO's place failed: {done.stderr.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def child(job_file: str, out: str) -> None:
    """In the environment of its own: load the bundle there and ask it."""
    from edgeft.run import load
    from edgeft.run.provider import placement

    job = json.loads(Path(job_file).read_text())
    options = {"device_type": "CPU", "load_config": json.dumps({"CPU": ROUNDED if job["rounded"] else EXACT})}
    model = load(job["bundle"], provider=(PROVIDER, options), keep_prompts=0)
    found = [place_python.answer(model, question, job["tokens"]) for question in job["questions"]]
    placed = {name: {provider: counts.total() for provider, counts in placement(model.graphs.get(name).ort).items()}
              for name in model.graphs.opened}
    Path(out).write_text(json.dumps({"answers": found, "placement": placed}))


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--child":
        child(*sys.argv[2:])
        return
    if len(sys.argv) != 2:
        sys.exit(f"{Path(__file__).name}: give it one bundle")
    if missing():
        sys.exit(missing())
    result = ask(Path(sys.argv[1]), [{"prompt_tokens": [1], "adapter": None}], 16)
    print(json.dumps({"tokens": result["answers"][0]["tokens"], "placement": result["placement"]}, indent=2))


if __name__ == "__main__":
    main()
