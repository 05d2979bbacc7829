"""Classifiers learn their labels, whatever the method, and leave folders that PEFT and transformers load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.tensors import write_tensors
from tests.conftest import lines, write_tokenizer

from .conftest import call, texts, train_classifier

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


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_encoder_decoders_are_refused_by_name(model_type: str, colors: Path, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "encoder_layers": 1,
             "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2}
    config = AutoConfig.for_model(model_type, vocab_size=60, **sizes)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    call("train", "lora", "--base", tmp_path / "base", "--data", colors, "--out", tmp_path / "r", code=2)
    assert f"{model_type} is an encoder-decoder" in capsys.readouterr().err
    call("export", tmp_path / "base", "--device", "cpu-x86_64", "--out", tmp_path / "b", code=2)
    said = capsys.readouterr().err
    assert "encoder-decoder" in said
    assert model_type in said


def test_what_does_not_fit_together_is_refused_by_name(bert: Path, base: Path, colors: Path, data: Path,
                                                       tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = lines(tmp_path / "text.jsonl", [{"text": "the cat runs"}] * 3)
    one = lines(tmp_path / "one.jsonl", [{"text": "the cat", "label": "cat"}] * 3)
    other = lines(tmp_path / "other.jsonl", [{"text": "the cat", "label": "violet"}] * 3)
    start = ["train", "lora", "--out", tmp_path / "run", "--base"]
    for code, words, arguments in [
            (2, "bert is an encoder", [bert, "--data", text]),
            (2, "not both", [base, "--data", colors, "--data", data]),
            (2, "'cat'; a classifier needs two", [bert, "--data", one]),
            (1, "'violet'", [bert, "--data", colors, "--eval-data", other]),
            (2, "measured on lines of", [bert, "--data", colors, "--eval-data", text]),
            (2, "measured on lines of", [bert, "--data", colors, "--probe", text])]:
        call(*start, *arguments, code=code)
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_other_encoders_are_refused_by_name(colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("electra", vocab_size=60).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    call("train", "full", "--base", tmp_path / "base", "--data", colors, "--out", tmp_path / "r", code=2)
    assert "electra is an encoder that is not known here" in capsys.readouterr().err


def test_soft_prompts_on_encoders_are_refused_by_name(bert: Path, colors: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    from edgeft import plugins

    monkeypatch.setattr(type(plugins.host().method("lora")), "peft_type", "PROMPT_TUNING")
    call("train", "lora", "--base", bert, "--data", colors, "--out", tmp_path / "r", code=2)
    assert "a soft prompt on an encoder (bert)" in capsys.readouterr().err
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_CLS", "base_model_name_or_path": str(bert)}))
    write_tensors(tmp_path / "wild" / "adapter_model.safetensors", {"prompt_embeddings": np.ones((4, 64), np.float32)})
    call("export", tmp_path / "wild", "--device", "cpu-x86_64", "--out", tmp_path / "b", code=2)
    assert "a soft prompt (PROMPT_TUNING) on an encoder (bert)" in capsys.readouterr().err


def test_long_texts_are_cut_and_that_is_said(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [{**line, "text": line["text"] + " the cat" * 40} for line in texts(3)]
    train_classifier(tmp_path / "run", bert, lines(tmp_path / "long.jsonl", [*texts(12), *long]), "--max-steps", 1,
                     "--holdout", 0)
    assert "3 of 15 texts are longer than 64 tokens and were cut" in capsys.readouterr().err


def test_on_the_grid_the_head_stays_float(make_encoder: Callable[..., Path], colors: Path, tmp_path: Path) -> None:
    from edgeft.contract.grid import Quant
    from edgeft.train.base import load_base
    from edgeft.train.grid import put_on_grid

    base = make_encoder(auto="AutoModelForSequenceClassification", num_labels=3)
    run = train_classifier(tmp_path / "run", base, colors, "--max-steps", 4, "--device", "cpu-x86_64")
    assert record(run)["grid"]["quant"] == "int4"
    model = load_base(str(base), labels=["blue", "green", "red"]).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    put_on_grid(model, Quant("int4", 128))
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert "bert.encoder.layer.0.output.dense.weight" in changed
    assert not any("pooler" in name or "classifier" in name for name in changed)
