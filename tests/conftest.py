"""Small models made on the spot; what needs ../shared skips where that is absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
SHARED = Path(__file__).resolve().parents[2] / "shared"
WORDS = ("red green blue small large cat dog bird house tree runs sees likes finds the a is in on and one two three "
         "four five name color size place kind of").split()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data."""
    if not (SHARED / "models").is_dir():
        pytest.skip("../shared is not there")
    return SHARED


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny random base of an architecture, with a tokenizer and a chat template."""
    def make(model_type: str = "llama", seed: int = 0, weights: bool = True, **extra: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(model_type)
        tokenizer = write_tokenizer(folder)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True}
        if not hasattr(AutoConfig.for_model(model_type), "num_key_value_heads"):
            del sizes["num_key_value_heads"]  # PEFT would believe it, and the architecture does not read it
        config = AutoConfig.for_model(model_type, vocab_size=tokenizer.get_vocab_size(), bos_token_id=1,
                                      eos_token_id=2, **{**sizes, **extra})
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        if weights:
            model.save_pretrained(folder)
        else:
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
        return folder

    return make


def write_tokenizer(folder: Path) -> Any:
    """A byte-level BPE with <s>, </s> and chat marks, and the files that transformers wants beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    return tokenizer


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path]) -> Path:
    """A tiny llama."""
    return make_base()


def lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """A task that a tiny model learns in seconds: name the color and the thing."""
    colors, things, verbs = WORDS[:3], WORDS[5:10], WORDS[10:14]
    made = []
    for index in range(start, start + count):
        color, thing, verb = colors[index % 3], things[index // 3 % 5], verbs[index // 15 % 4]
        made.append({"prompt": f"the {color} {thing} {verb} a {things[(index + 2) % 5]}",
                     "completion": f"color {color} kind {thing}"})
    return made


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty prompt and completion lines."""
    return lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs(60))


def edgeft(*arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "edgeft", *map(str, arguments)], capture_output=True, text=True,
                          check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"edgeft {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def train_run(out: Path, base: Path, data: Path, *options: object, method: str = "lora") -> Path:
    """Train in this process (torch is loaded once), by the command line's own code."""
    from edgeft.cli import main

    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main(["train", method, "--base", str(base), "--data", str(data), "--out", str(out), *map(str, options)])
    assert ended.value.code == 0
    return out


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    """A trained LoRA."""
    return train_run(tmp_path_factory.mktemp("runs") / "colors", base, data, "--epochs", 12, "--lr", 0.03,
                     "--batch-size", 8)


def export_bundle(out: Path, source: Path, *options: object) -> Path:
    """Export in this process; the verification's runner is a process of its own as always."""
    from edgeft.cli import main

    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main(["export", str(source), "--device", "cpu-x86_64", "--out", str(out), *map(str, options)])
    assert ended.value.code == 0
    return out


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, lora_run: Path) -> Path:
    """The LoRA beside its base, fp32."""
    return export_bundle(tmp_path_factory.mktemp("bundles") / "fp32", lora_run, "--quant", "fp32")


@pytest.fixture(scope="session")
def int4_bundle(tmp_path_factory: pytest.TempPathFactory, lora_run: Path) -> Path:
    """The same as int4."""
    return export_bundle(tmp_path_factory.mktemp("bundles") / "int4", lora_run)
