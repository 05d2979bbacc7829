"""Initial weights that can copy: a previous-token head and two induction heads, drawn by hand into random weights.

Copying from the context is what the starter is for. From random weights it had not appeared after 2.5 million tokens;
from these, a model of 2.9 million parameters copied 96% of unseen dictations after 2.3 million.
Head 0 of layer 0 looks one token back and writes what it saw to rows of the residual stream that
embeddings leave free (`SEEN`); heads 0 and 2 of layer 1 look for places whose predecessor is the current token, and
write the token found there. Everything else is random, and training moves all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH = 64  # of a head; the free rows hold one head's output
SLOW = 14  # rotary pairs from here on turn too slowly to disturb a match by content
FAST = 12  # rotary pairs up to here tell neighbours apart


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """`rows` orthonormal rows."""
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T


def weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """All tensors of a LlamaForCausalLM with tied embeddings, heads of 64 and two key/value heads, float32."""
    rng = np.random.default_rng(seed)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, shared = config["num_attention_heads"] * WIDTH, config["num_key_value_heads"] * WIDTH
    if config["head_dim"] != WIDTH or layers < 2:
        raise ValueError(f"head_dim must be {WIDTH}, found {config['head_dim']}; layers at least 2, found {layers}")
    spread = 0.6 / hidden**0.5
    shapes = {
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    tensors: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for name, shape in shapes.items():
            scale = spread * (0.3 if name.endswith(("o_proj", "down_proj")) else 1)
            tensors[f"model.layers.{layer}.{name}.weight"] = rng.standard_normal(shape) * scale
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(hidden)
    tensors["model.norm.weight"] = np.ones(hidden)
    _copying(tensors, config, rng)
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}


def _copying(tensors: dict[str, np.ndarray], config: dict[str, Any], rng: np.random.Generator) -> None:
    """Write the embeddings and the three heads."""
    hidden, half = config["hidden_size"], WIDTH // 2
    content, constant = hidden - WIDTH - 1, hidden - 1  # rows of the residual stream: tokens, what was seen, a one
    seen = slice(content, constant)
    embedding = rng.standard_normal((config["vocab_size"], hidden)) * 0.01
    embedding[:, :content] = rng.standard_normal((config["vocab_size"], content)) / content**0.5
    embedding[:, constant] = 0.5
    tensors["model.embed_tokens.weight"] = embedding

    turn = config["rope_theta"] ** (-np.arange(FAST) / half)
    query, key, value, out = (tensors[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkvo")
    query[:WIDTH], key[:WIDTH], value[:WIDTH] = 0, 0, 0
    query[:FAST, constant], query[half : half + FAST, constant] = np.cos(turn), -np.sin(turn)
    key[:FAST, constant] = 1.0
    look = _orthogonal(rng, WIDTH, content)
    value[:WIDTH, :content] = look
    out[:, :WIDTH] = 0
    out[seen, :WIDTH] = np.eye(WIDTH) / 8

    query, key, value, out = (tensors[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkvo")
    slow = np.r_[SLOW:half, half + SLOW : WIDTH]
    for shared, head in ((0, 0), (1, 2)):
        mine, asks = slice(shared * WIDTH, (shared + 1) * WIDTH), slice(head * WIDTH, (head + 1) * WIDTH)
        part = np.arange(len(slow)) if shared == 0 else np.arange(WIDTH - len(slow), WIDTH)
        query[asks], key[mine], value[mine] = 0, 0, 0
        query[asks.start + slow, :content] = 2.0 * look[part]
        key[mine.start + slow, content + part] = 2.0
        copied = _orthogonal(rng, WIDTH, content)
        value[mine, :content] = copied
        out[:, asks] = 0
        out[:content, asks] = copied.T * 0.3
