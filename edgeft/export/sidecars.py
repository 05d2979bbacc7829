"""The small files beside the graph: tokenizer, chat template, and what ONNX Runtime GenAI reads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgeft.contract.files import write_json

from .base import Base

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# model types that GenAI knows under their own name; any other decoder is a plain "decoder" to it
GENAI_TYPES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
               "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3_text", "olmo": "olmo", "granite": "granite",
               "smollm3": "smollm3"}


def write_tokenizer(base: Base, folder: Path) -> Any:
    """tokenizer.json, its config and the chat template; returns the tokenizer."""
    tokenizer = base.tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        for name in KEPT:
            if Path(scratch, name).is_file():
                (folder / name).write_bytes(Path(scratch, name).read_bytes())
    return tokenizer


def generation(base: Base) -> dict[str, Any]:
    """End tokens, and sampling defaults where the base's generation config asks for sampling."""
    config = base.generation
    wanted = {name: config[name] for name in SAMPLING if config.get("do_sample") and config.get(name) is not None}
    if config.get("do_sample"):
        wanted.setdefault("temperature", 1.0)
    return {"eos": base.eos, **wanted}


def write_genai_config(base: Base, folder: Path, *, context: int, shared: bool) -> None:
    """genai_config.json, so that apps on ONNX Runtime GenAI open the bundle as it is."""
    config = base.config
    heads = config.num_attention_heads
    eos = base.eos or [0]
    parts = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    write_json(folder / "genai_config.json", {
        "model": {
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else eos[0],
            "eos_token_id": eos if len(eos) > 1 else eos[0],
            "pad_token_id": config.pad_token_id if config.pad_token_id is not None else eos[0],
            "context_length": context,
            "vocab_size": config.vocab_size,
            "type": GENAI_TYPES.get(config.model_type, "decoder"),
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
                "hidden_size": config.hidden_size,
                "num_attention_heads": heads,
                "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
                "num_hidden_layers": config.num_hidden_layers,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **parts},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                            "present_value_names": "present.%d.value"},
            },
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": shared, "num_beams": 1,
                   "temperature": 1.0, "top_k": 1, "top_p": 1.0, "repetition_penalty": 1.0, "min_length": 0,
                   "length_penalty": 1.0, "no_repeat_ngram_size": 0, "diversity_penalty": 0.0,
                   "early_stopping": True, "num_return_sequences": 1},
    })
