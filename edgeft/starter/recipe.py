"""Make everything that the starter's training needs: `python -m edgeft.starter.recipe --out DIR`.

Writes `DIR/base/` (configuration, tokenizer, chat template, initial weights), `DIR/train.jsonl` and `DIR/valid.jsonl`
(pre-training text) and the sample task under `DIR/data/`. A text's line ends where the trainer puts `</s>`; the
tokenizer puts `<s>` in front, so neither is written at a line's ends, dialogues included.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

from . import commands, grammar

SPECIALS = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 2048
PIECES = 1400
SPACE = "\u0120"
CHAT_SHARE = 0.05
PROBE_LINES = 200
# Words with the space in front of them, digits one by one: the split that many current models use.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "vocab_size": VOCABULARY,
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2, "initializer_range": 0.05, "use_cache": True,
}  # fmt: skip


def rendered(messages: list[dict[str, str]]) -> str:
    """A conversation as the chat template writes it, without the outer `<s>` and `</s>`."""
    turns = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
    return "</s>\n".join(turns)


def corpus(seed: int, split: str) -> Iterator[str]:
    """Endless pre-training texts of one split, every twentieth or so a rendered conversation."""
    rng = Random(f"corpus {seed} {split}")
    texts, chats = grammar.texts(seed, split), grammar.chats(seed, split)
    while True:
        yield rendered(next(chats)) if rng.random() < CHAT_SHARE else next(texts)


def upto(texts: Iterable[str], size: int) -> Iterator[str]:
    """Texts until their bytes reach `size`."""
    for text in texts:
        if size <= 0:
            return
        size -= len(text.encode())
        yield text


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> int:
    """Write JSON lines; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE of `VOCABULARY` entries, `<s>` in front of what it encodes.

    Pieces are learned without spaces, then the commonest at a word's start get a twin with the space, merged last. So
    a word is cut the same way after a space and after a quote, and copying it into JSON is copying token by token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    def cut(pattern: str) -> Any:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    texts = list(texts)
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = cut(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s")
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        show_progress=False,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bare.train_from_iterator(texts, trainer)
    model = json.loads(bare.to_str())["model"]
    vocabulary, merges = dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
    starts: Counter[str] = Counter()
    for encoding in bare.encode_batch(texts[:20000]):
        starts.update(after for before, after in pairwise(encoding.tokens) if before == SPACE)
    for piece, _ in sorted(starts.items(), key=lambda item: (-item[1], item[0])):
        if len(vocabulary) < VOCABULARY and piece not in SPECIALS and SPACE + piece not in vocabulary:
            vocabulary[SPACE + piece] = len(vocabulary)
            merges.append((SPACE, piece))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = cut(SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", SPECIALS.index("<s>"))]
    )
    return tokenizer


def write_base(folder: Path, texts: Iterable[str], seed: int) -> None:
    """Write a base model folder with its initial weights, from which the training starts."""
    from safetensors.numpy import save_file

    from .initial import weights

    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(texts).save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **tokens, "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(weights(CONFIG, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_samples(folder: Path, seed: int) -> None:
    """Write the sample task and the probe, as they are shipped under `data/`."""
    train, test = commands.dataset(seed)
    write_lines(folder / "commands-train.jsonl", train)
    write_lines(folder / "commands-test.jsonl", test)
    # A seed of its own, so that the probe shares no line with what training validates on.
    probe = islice(grammar.texts(seed + 1, "valid"), PROBE_LINES)
    write_lines(folder / "probe.jsonl", ({"text": text} for text in probe))


def ship(run: Path) -> None:
    """Put a trained run into the package as float16: the model that `--base starter` means."""
    import numpy as np

    from edgeft.contract.tensors import TensorFile, write_tensors

    from . import MODEL

    MODEL.mkdir(exist_ok=True)
    file = TensorFile(run / "model.safetensors")
    write_tensors(MODEL / "model.safetensors", {name: file[name].astype(np.float16) for name in sorted(file)},
                  {"format": "pt"})
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (MODEL / "config.json").write_text(json.dumps({**config, "dtype": "float16"}, indent=2) + "\n", encoding="utf-8")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (MODEL / name).write_bytes((run / name).read_bytes())


def main() -> None:
    """Parse the options and write everything, or ship what was trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to write into")
    what.add_argument("--ship", type=Path, metavar="RUN", help="put this trained run into the package")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--megabytes", type=float, default=40.0, help="size of the pre-training text")
    options = parser.parse_args()
    if options.ship:
        ship(options.ship)
        return
    out, seed, size = options.out, options.seed, int(options.megabytes * 1e6)
    write_base(out / "base", upto(corpus(seed, "train"), 6_000_000), seed)
    count = write_lines(out / "train.jsonl", ({"text": text} for text in upto(corpus(seed, "train"), size)))
    held = write_lines(out / "valid.jsonl", ({"text": text} for text in islice(corpus(seed, "valid"), 1000)))
    write_samples(out / "data", seed)
    print(f"{out}: {count} lines to train on, {held} to validate on")


if __name__ == "__main__":
    main()
