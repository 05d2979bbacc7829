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

from edgeft.contract.bundle import read_bundle
from edgeft.contract.memory import peak_mib
from edgeft.contract.tensors import write_tensors

from .adapters import length_of
from .classify import raw_outputs
from .model import Model
from .provider import here


def answer(model: Model, ids: list[int], forced: list[int], new: int, adapters: dict[str, float]) -> dict[str, Any]:
    """Greedy tokens, and logits [prompt + forced, vocab] as the runner makes them: the prompt, then token by token."""
    lanes = model.lanes([adapters], len(ids) + new)
    logits = lanes.prefill([ids])[0]
    tokens: list[int] = []
    while len(tokens) < new:
        tokens.append(int(logits.argmax()))
        if tokens[-1] in model.eos or len(tokens) == new:
            break
        logits = lanes.step([tokens[-1]])[0]
    lanes.close()
    again = model.lanes([adapters], len(ids) + len(forced))
    parts = [np.array(again.feed(0, ids, keep=0)), *(np.array(again.step([token])) for token in forced)]
    again.close()
    return {"tokens": np.asarray(tokens, np.int64), "logits": np.concatenate(parts)}


def contract_logits(model: Model, ids: list[int], adapters: dict[str, float]) -> np.ndarray[Any, Any]:
    """Logits [ids, vocab] of one pass through the contract's graph, which the runner may do without."""
    kind = model.shelf.kind(adapters)
    slots = model.shelf.slots([adapters])
    session = model.graphs.for_batch(scaled=kind == "scale")
    prefix = model.shelf.prefix(adapters)
    before = length_of(prefix)
    feeds = {"input_ids": np.asarray([ids]), "attention_mask": np.ones((1, before + len(ids)), np.int64),
             **session.fill({**slots.shared, **slots.rows})}
    for layer, (heads, size) in enumerate(model.graphs.layers):
        for place, part in enumerate(("key", "value")):
            feeds[f"past_key_values.{layer}.{part}"] = prefix[layer][place][None] if prefix \
                else np.zeros((1, heads, 0, size), np.float32)
    return np.asarray(session.ort.run(["logits"], feeds)[0][0])


def main() -> None:
    """Answer every item of the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    model = Model(job["bundle"], several=True, keep_prompts=0, provider=here(read_bundle(Path(job["bundle"]))))
    found: dict[str, Any] = {}
    for index, item in enumerate(job["items"]):
        if "rows" in item:
            found[f"{index}.rows"] = raw_outputs(model, item["rows"], item["adapters"])
            continue
        for key, value in answer(model, item["ids"], item["forced"], item["new"], item["adapters"]).items():
            found[f"{index}.{key}"] = value
        found[f"{index}.contract"] = contract_logits(model, [*item["ids"], *item["forced"]], item["adapters"])
    write_tensors(Path(sys.argv[2]), found, {"peak_mib": str(round(peak_mib(), 1))})


if __name__ == "__main__":
    main()
