"""The runner in Chromium, WebAssembly with one thread, for places.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from chromium import ask, visit
from chromium import missing as no_chromium

DEVICE = Path(__file__).resolve().parents[1] / "devices" / "browser-wasm.toml"


def missing() -> str:
    """What is to be installed first; empty if nothing is."""
    from edgeft.contract.errors import EdgeftError
    from edgeft.export.npm import packages, read_package

    try:
        for package in packages():
            read_package(package)
    except EdgeftError as error:
        return str(error).splitlines()[0]
    return no_chromium()


def answers(bundle: Path, questions: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Greedy answers of at most so many tokens, and the logits behind each prompt.

    A bundle for another device gets the page's files beside it, in a copy.
    """
    from edgeft.contract.device import read_device
    from edgeft.export.webpage import PAGE, page_beside

    with tempfile.TemporaryDirectory() as scratch:
        paged = (bundle / PAGE).is_file()
        folder = bundle if paged else page_beside(bundle, read_device(DEVICE), Path(scratch, "page"))
        with visit(folder, Path(scratch, "profile")) as there:
            page = there.client()
            return [_answer(page, question, tokens) for question in questions]


def _answer(page: Any, question: dict[str, Any], tokens: int) -> dict[str, Any]:
    prompt, adapters = question["prompt_tokens"], {question["adapter"]: 1.0} if question["adapter"] else {}
    logits = ask(page, "logits", ids=prompt, adapters=adapters)["logits"]
    options = {"adapters": adapters, "max_tokens": tokens, "temperature": 0}
    done = ask(page, "generate", prompt=prompt, options=options)
    return {"tokens": done["tokens"], "logits": logits}
