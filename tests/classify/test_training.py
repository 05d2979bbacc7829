"""Classifiers learn their labels, whatever the method, and leave folders that PEFT and transformers load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edgeft, lines

from .conftest import texts, train_classifier

TYPES = ["bert", "roberta", "distilbert", "deberta-v2", "llama"]


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "edgeft.json").read_text())


def predictions(base: Path, run: Path, asked: list[str]) -> list[str]:
    """What PEFT alone makes of a run, text by text."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = record(run)["labels"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    model = PeftModel.from_pretrained(model, run).eval()
    with torch.no_grad():
        return [labels[int(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.argmax())] for text in asked]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_lora_learns_labels_and_is_a_plain_peft_folder(any_base: Callable[[str], Path], colors: Path,
                                                         tmp_path: Path, model_type: str) -> None:
    base = any_base(model_type)
    run = train_classifier(tmp_path / "run", base, colors, "--eval-data", colors)
    found = record(run)
    assert found["labels"] == ["blue", "green", "red"]
    assert found["metrics"]["eval_base"]["colors"]["accuracy"] < 0.6
    assert found["metrics"]["eval"]["colors"]["accuracy"] > 0.9
    asked = texts(12, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = predictions(base, run, [line["text"] for line in asked])
    assert sum(answer == line["label"] for answer, line in zip(answers, asked, strict=True)) >= 11
