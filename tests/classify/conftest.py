"""Tiny random encoders and a task of three labels that they learn in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.conftest import WORDS, lines, train_run, write_tokenizer


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """A trace takes seconds and depends on the config alone: one per architecture."""
    from edgeft.export import encoder

    kept: dict[str, bytes] = {}
    trace = encoder._export

    def once(body: Any) -> Any:
        import onnx_ir as ir

        key = body.config.to_json_string(use_diff=False).replace(str(body.config.name_or_path), "")
        if key not in kept:
            kept[key] = ir.to_proto(trace(body)).SerializeToString()
        return ir.from_proto(onnx.ModelProto.FromString(kept[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_export", once)
        yield


def call(*arguments: object, code: int = 0) -> None:
    """The command line in this process, where torch is loaded already."""
    from edgeft.cli import main

    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main([str(argument) for argument in arguments])
    assert ended.value.code == code

SIZES: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
                   "position_buckets": 8, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
                   "pooler_hidden_size": 64}}


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny random masked language model, or another class, with a tokenizer."""
    def make(model_type: str = "bert", auto: str = "AutoModelForMaskedLM", seed: int = 0, **extra: Any) -> Path:
        import torch
        import transformers

        folder = tmp_path_factory.mktemp(model_type)
        tokenizer = write_tokenizer(folder)
        common = {"max_position_embeddings": 64, "pad_token_id": 0}
        if model_type != "distilbert":
            common |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.AutoConfig.for_model(
            model_type, vocab_size=tokenizer.get_vocab_size(), **{**common, **SIZES[model_type], **extra})
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
        model.save_pretrained(folder)
        return folder

    return make


def texts(count: int, start: int = 0, by: str = "color") -> list[dict[str, str]]:
    """Sentences whose label is their color, or their animal: known from one word."""
    colors, things, verbs = WORDS[:3], WORDS[5:9], WORDS[10:14]
    made = []
    for index in range(start, start + count):
        color, thing, verb = colors[index % 3], things[index // 3 % 4], verbs[index // 12 % 4]
        tail = " on the tree" * (index % 3)
        made.append({"text": f"the {color} {thing} {verb} a house{tail}", "label": color if by == "color" else thing})
    return made


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety-six texts of three colors."""
    return lines(tmp_path_factory.mktemp("data") / "colors.jsonl", texts(96))


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts with four other labels."""
    return lines(tmp_path_factory.mktemp("data") / "things.jsonl", texts(96, by="thing"))


def train_classifier(out: Path, base: Path, data: Path, *options: object, method: str = "lora") -> Path:
    """A few epochs at a high rate."""
    return train_run(out, base, data, "--epochs", 16, "--lr", 0.003, "--batch-size", 8, *options, method=method)


@pytest.fixture(scope="session")
def bert(make_encoder: Callable[..., Path]) -> Path:
    """A tiny bert."""
    return make_encoder()


@pytest.fixture(scope="session")
def bert_run(tmp_path_factory: pytest.TempPathFactory, bert: Path, colors: Path) -> Path:
    """A LoRA on it that knows the colors."""
    return train_classifier(tmp_path_factory.mktemp("runs") / "colors", bert, colors, "--eval-data", colors)


@pytest.fixture(scope="session")
def any_base(make_encoder: Callable[..., Path], base: Path, bert: Path) -> Callable[[str], Path]:
    """A tiny base of a type; each is made once."""
    made = {"llama": base, "bert": bert}

    def get(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = make_encoder(model_type)
        return made[model_type]

    return get
