"""`python -m edgeft.run.probe JOB.json OUT.safetensors`: what a bundle answers, for the exporter to compare.

The exporter starts this as a process of its own, so that what is verified is the very runner that ships, with
no torch near it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.contract.memory import peak_mib
from edgeft.contract.tensors import write_tensors

from .classify import raw_outputs
from .model import Model


def answer(model: Model, ids: list[int], forced: list[int], new: int, adapters: dict[str, float]) -> dict[str, Any]:
    """Greedy tokens by the decode path, and logits [prompt + forced, vocab] by one teacher-forced pass."""
    cache = model.cache([adapters], len(ids) + new)
    logits = cache.prefill([ids])[0]
    tokens: list[int] = []
    while len(tokens) < new:
        tokens.append(int(logits.argmax()))
        if tokens[-1] in model.eos or len(tokens) == new:
            break
        logits = cache.forward(np.asarray([[tokens[-1]]]), [1])[0, 0]
    whole = model.cache([adapters], len(ids) + len(forced))
    forced_logits = whole.forward(np.asarray([[*ids, *forced]]), [len(ids) + len(forced)])[0]
    return {"tokens": np.asarray(tokens, np.int64), "logits": np.array(forced_logits)}


def main() -> None:
    """Answer every item of the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    model = Model(job["bundle"])
    found: dict[str, Any] = {}
    for index, item in enumerate(job["items"]):
        if "rows" in item:
            found[f"{index}.rows"] = raw_outputs(model, item["rows"], item["adapters"])
            continue
        for key, value in answer(model, item["ids"], item["forced"], item["new"], item["adapters"]).items():
            found[f"{index}.{key}"] = value
    write_tensors(Path(sys.argv[2]), found, {"peak_mib": str(round(peak_mib(), 1))})


if __name__ == "__main__":
    main()
