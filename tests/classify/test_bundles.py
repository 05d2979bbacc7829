"""Bundles that classify and embed: equal to PEFT and transformers, adapters with labels of their own side by side."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.run import load
from tests.conftest import edgeft, export_bundle

from .conftest import texts, train_classifier

ASKED = [line["text"] for line in texts(7, 100)]


def torch_scores(base: Path, run: Path | None, asked: list[str], labels: list[str]) -> list[dict[str, float]]:
    """Label -> score by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    if run is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, run)
    model.eval()
    found = []
    with torch.no_grad():
        for text in asked:
            scores = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1).tolist()
            found.append(dict(zip(labels, scores, strict=True)))
    return found


def check(found: list[list[tuple[str, float]]], wanted: list[dict[str, float]]) -> None:
    for scores, right in zip(found, wanted, strict=True):
        assert scores[0][0] == max(right, key=lambda label: right[label])
        assert dict(scores) == pytest.approx(right, abs=1e-4)


def parity(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())["parity"]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "deberta-v2", "llama"])
def test_a_lora_beside_and_merged_equals_peft(any_base: Callable[[str], Path], colors: Path, tmp_path: Path,
                                              model_type: str) -> None:
    base = any_base(model_type)
    run = train_classifier(tmp_path / "colors", base, colors, "--max-steps", 40)
    wanted = torch_scores(base, run, ASKED, ["blue", "green", "red"])
    beside = load(export_bundle(tmp_path / "beside", run, "--quant", "fp32"))
    check(beside.classify(ASKED), wanted)
    merged = load(export_bundle(tmp_path / "merged", run, "--quant", "fp32", "--merge"))
    check(merged.classify(ASKED), wanted)
    assert beside.task(None) == merged.task(None) == "text-classification"
    assert beside.task({}) == ("text-generation" if model_type == "llama" else "feature-extraction")
    half = beside.classify(ASKED, adapters={"colors": 0.0})
    assert any(abs(dict(left)["red"] - right["red"]) > 1e-3 for left, right in zip(half, wanted, strict=True))
