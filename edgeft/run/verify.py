"""Check a bundle where it stands: every digest and reference, every adapter's fit, and the recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeft.contract.bundle import Bundle, check_runnable, read_bundle
from edgeft.contract.chat import read_chat_template
from edgeft.contract.errors import EdgeftError, Faults

from .adapters import open_adapter
from .classify import raw_outputs
from .model import Model
from .tokenizer import read_tokenizer

LEAST = {"fp32": 1.0, "fp16": 0.9}  # share of recorded tokens that must come again; integer grids: see below
LEAST_ON_GRID = 0.5  # other processors round int8 activations differently, or not at all; near ties fall otherwise
MOST = 200  # faults that are told


def verify(folder: Path) -> dict[str, Any]:
    """Digests, bounds, and a replay of the recorded answers; EdgeftError says all that is wrong."""
    bundle = read_bundle(folder)
    faults = Faults(f"{folder}: is not as it was exported")
    size = examine(bundle, faults)
    faults.raise_if_any("Copy it again, or export it again.", most=MOST)
    model = Model(folder)
    if model.graphs.prepared is not None:
        size += model.graphs.prepared.check_whole()
    for name in bundle.adapters:
        model.load_adapter(name)
    replay = [item for item in bundle.manifest["parity"].get("replay", [])
              if set(item["adapters"]) <= set(bundle.adapters)]
    asked = ask_again(model, replay, str(folder))
    return {"files": len(bundle.manifest["files"]), "bytes": size, "adapters": sorted(bundle.adapters),
            **asked, "parity": {
                key: value for key, value in bundle.manifest["parity"].items() if key != "replay"}}


def ask_again(model: Model, replay: Sequence[dict[str, Any]], who: str) -> dict[str, Any]:
    """How many recorded answers were asked again, and the share of tokens that came again; EdgeftError for too few."""
    equal = total = 0
    for item in replay:
        found = [int(raw_outputs(model, [item["ids"]], item["adapters"])[0].argmax())] if item.get("classifies") \
            else follow(model, item["ids"], item["tokens"], item["adapters"])
        equal += sum(left == right for left, right in zip(found, item["tokens"], strict=False))
        total += len(item["tokens"])
    agreement = equal / total if total else 1.0
    kind = model.bundle.manifest["quant"]["kind"]
    least = LEAST.get(kind, LEAST_ON_GRID)
    if agreement < least:
        raise EdgeftError(f"{who}: answers differ on this machine: {agreement:.0%} of the recorded tokens come "
                          f"again, at least {least:.0%} must. Its files are as exported, so the cause is this "
                          "machine's onnxruntime; please report it.")
    return {"replayed": len(replay), "agreement": agreement}


def follow(model: Model, ids: list[int], tokens: list[int], adapters: dict[str, float]) -> list[int]:
    """The greedy choice behind the prompt and behind each recorded token, whatever was chosen before it.

    So one near tie that falls otherwise here costs one token, and not all that follow.
    """
    lanes = model.lanes([adapters], len(ids) + len(tokens))
    found = [int(lanes.prefill([ids])[0].argmax())]
    found += [int(lanes.step([token])[0].argmax()) for token in tokens[:-1]]
    lanes.close()
    return found


def examine(bundle: Bundle, faults: Faults) -> int:
    """Read every file and note all that is wrong with any of them; returns bytes read."""
    def tried(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except EdgeftError as error:
            faults.lines += [line for line in str(error).splitlines() if line not in faults.lines]
            return None

    files = bundle.manifest["files"]
    tried(lambda: check_runnable(bundle))
    size = tried(lambda: bundle.check_files(whole=True, most=MOST)) or 0
    for name in files:
        if name.endswith(".onnx"):
            tried(partial(bundle.graph, name))
    if "tokenizer.json" in files:
        tried(lambda: read_tokenizer(bundle))
    render = tried(lambda: read_chat_template(bundle.folder, set(files)))
    if render is not None:
        tried(render.ready)
    for name in bundle.adapters:
        tried(partial(_check_adapter, bundle, name))
    return int(size)


def _check_adapter(bundle: Bundle, name: str) -> None:
    adapter = open_adapter(name, bundle.adapter_file(name), bundle)
    adapter.checked.result()
    adapter.prompt  # noqa: B018  what its header says of prompts is checked when it is read
