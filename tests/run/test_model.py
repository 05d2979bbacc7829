"""The runner: adapters, batches, sampling, stops, streams, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import Model, load
from edgeft.run.evaluate import evaluate
from tests.conftest import WORDS, edgeft, lines

PROMPT = "the red cat runs a tree"


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(str(bundle))


def changed(bundle: Path, out: Path, factor: float, **metadata: str) -> Path:
    """A copy of the bundle's adapter with B times a factor."""
    file = TensorFile(bundle / "adapters" / "colors.safetensors")
    write_tensors(out, {name: np.array(file[name]) * np.float32(factor if name.endswith(".B") else 1) for name in file},
                  {**file.metadata, **metadata})
    return out


def test_the_default_adapter_is_used_unless_told_otherwise(model: Model) -> None:
    assert model.generate(PROMPT).adapters == {"colors": 1.0}
    assert model.generate(PROMPT, adapters={}).adapters == {}
    assert model.generate(PROMPT).tokens == model.generate(PROMPT, adapters={"colors": 1}).tokens
    assert model.generate(PROMPT).tokens != model.generate(PROMPT + "\n", adapters={}).tokens


def test_raw_feeds_the_text_as_it_is(model: Model) -> None:
    assert model.generate(PROMPT + "\n", raw=True).prompt_tokens == model.generate(PROMPT).prompt_tokens


def test_scale_and_stack_add_up(model: Model, bundle: Path, tmp_path: Path) -> None:
    """Half of an adapter of twice the size is the adapter; so are two halves side by side."""
    model.load_adapter("double", changed(bundle, tmp_path / "d.safetensors", 2.0))
    wanted = logits(model, {"colors": 1.0})
    assert np.abs(logits(model, {"double": 0.5}) - wanted).max() < 1e-4
    assert np.abs(logits(model, {"double": 0.25, "colors": 0.5}) - wanted).max() < 1e-4
    assert np.abs(logits(model, {"double": 1.0}) - wanted).max() > 1e-2
    assert np.abs(logits(model, {"double": 0.0}) - logits(model, {})).max() < 1e-6
    model.unload_adapter("double")
    with pytest.raises(UsageError, match="has no adapter 'double'"):
        model.generate(PROMPT, adapters={"double": 1.0})


def logits(model: Model, adapters: dict[str, float]) -> np.ndarray:
    """Last logits of a prompt."""
    lanes = model.lanes([adapters], 16)
    found = np.array(lanes.prefill([[1, 20, 30, 40]])[0])
    lanes.close()
    return found


def test_a_batch_equals_each_row_alone(model: Model, bundle: Path, tmp_path: Path) -> None:
    model.load_adapter("triple", changed(bundle, tmp_path / "t.safetensors", 3.0))
    prompts = [PROMPT, "the blue house", "one two three four five", "a"]
    adapters = [{"colors": 1.0}, {"triple": 0.2, "colors": 0.4}, {}, {"triple": 1.0}]
    alone = [model.generate(prompt, adapters=used, max_tokens=20)
             for prompt, used in zip(prompts, adapters, strict=True)]
    batch = model.batch(prompts, adapters=adapters, max_tokens=20)
    assert [row.tokens for row in batch] == [row.tokens for row in alone]
    assert len({tuple(row.tokens) for row in batch}) > 1
    model.unload_adapter("triple")


def test_a_long_prompt_goes_in_by_chunks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.generate(PROMPT, adapters={"colors": 1.0}).tokens
    monkeypatch.setattr("edgeft.run.lanes.CHUNK", 3)
    assert model.generate(PROMPT, adapters={"colors": 1.0}).tokens == whole


def test_the_stream_is_the_text(model: Model) -> None:
    pieces = list(model.stream(PROMPT, max_tokens=20))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate(PROMPT, max_tokens=20).text


def test_stop_texts_end_an_answer_before_them(model: Model) -> None:
    text = model.generate(PROMPT, adapters={}, max_tokens=40).text
    stop = text[5:8]
    cut = model.generate(PROMPT, adapters={}, max_tokens=40, stop=[stop])
    assert cut == text[: text.index(stop)]
    assert cut.finish == "stop"
    assert "".join(model.stream(PROMPT, adapters={}, max_tokens=40, stop=stop)) == cut


def test_a_seed_draws_the_same_again_and_another_does_not(model: Model) -> None:
    def draw(seed: int) -> list[int]:
        return model.generate(PROMPT, adapters={}, temperature=1.5, seed=seed, max_tokens=30).tokens

    assert draw(3) == draw(3)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_what_cannot_be_is_refused(model: Model) -> None:
    with pytest.raises(EdgeftError, match="no room is left"):
        model.generate("cat " * 400)
    with pytest.raises(UsageError, match="no option 'tempreature'"):
        model.generate(PROMPT, tempreature=1)
    with pytest.raises(UsageError, match="top_p"):
        model.generate(PROMPT, top_p=0.0)
    with pytest.raises(UsageError, match="finite"):
        model.generate(PROMPT, adapters={"colors": float("nan")})


def test_the_context_ends_an_answer(model: Model) -> None:
    answer = model.generate("cat " * 60, adapters={}, max_tokens=10_000)
    assert answer.finish in ("context", "eos")
    assert len(answer.prompt_tokens) + len(answer.tokens) <= model.context


@pytest.mark.parametrize(("change", "word"), [
    ({"base_fingerprint": "0" * 64}, "fingerprint"), ({}, "no such slot"), (None, "NaN")])
def test_an_adapter_that_does_not_fit_is_refused(model: Model, bundle: Path, tmp_path: Path,
                                                 change: dict[str, str] | None, word: str) -> None:
    path = changed(bundle, tmp_path / "a.safetensors", 1.0 if change is not None else float("nan"), **(change or {}))
    if change == {}:
        file = TensorFile(path)
        write_tensors(tmp_path / "b.safetensors", {name.replace("layers.0", "layers.7"): np.array(file[name])
                                                   for name in file}, file.metadata)
        path = tmp_path / "b.safetensors"
    with pytest.raises(EdgeftError, match=word):
        model.load_adapter("wrong", path)
    assert "wrong" not in model.shelf.names


def test_a_flipped_byte_is_noticed(bundle: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("model.onnx", "tokenizer.json", "adapters/colors.safetensors", "model.onnx.data"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(bundle, copy)
        raw = bytearray((copy / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (copy / name).write_bytes(raw)
        done = edgeft("verify", copy, check=False)
        assert done.returncode == 1
        assert name in done.stderr
        if not name.endswith(".data"):
            assert edgeft("run", copy, "--prompt", "a", check=False).returncode == 1


def test_run_prints_the_contracts_json(bundle: Path) -> None:
    found = json.loads(edgeft("run", bundle, "--prompt", PROMPT, "--json").stdout)
    assert {"text", "tokens", "prompt_tokens", "adapters", "prefill_tokens_per_s", "decode_tokens_per_s",
            "peak_rss_mib"} <= found.keys()
    assert edgeft("run", bundle, "--prompt", PROMPT).stdout.strip() == found["text"].strip()
    assert json.loads(edgeft("run", bundle, "--prompt", PROMPT, "--adapter", "none", "--json").stdout)["adapters"] == {}


def test_bench_prints_the_contracts_json(int4_bundle: Path) -> None:
    found = json.loads(edgeft("bench", int4_bundle, "--prompt-tokens", 16, "--new-tokens", 8, "--json").stdout)
    assert {"prefill", "decode", "peak_mib", "adapter", "threads"} <= found.keys()
    assert found["adapter"] == "colors"


def test_eval_of_a_bundle_equals_eval_of_its_run(bundle: Path, lora_run: Path, data: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text('{"text": "the small house is in the tree"}\n')
    probe.write_text("".join(f'{{"text": "the small {color} house is in the tree"}}\n' for color in WORDS[:3]))
    grammar = lines(tmp_path / "pairs.jsonl", [{"good": f"the {color} cat runs", "bad": f"{color} cat the runs"}
                                               for color in WORDS[:5]])
    found = [json.loads(edgeft("eval", subject, "--data", data, "--probe", probe, "--pairs", grammar, "--json").stdout)
             for subject in (bundle, lora_run)]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-4)
    assert found[0]["forgetting"] == pytest.approx(found[1]["forgetting"], abs=1e-4)
    assert found[0]["tokens"] == found[1]["tokens"]
    assert found[0]["interval"] == pytest.approx(found[1]["interval"], abs=1e-4)
    assert found[0]["kl"] == pytest.approx(found[1]["kl"], abs=1e-4)
    assert found[0]["kl"] > 0.01
    assert found[0]["pairs"] == found[1]["pairs"]


def test_eval_of_a_bundle_needs_no_data_and_follows_the_scale(bundle: Path, tmp_path: Path) -> None:
    probe = lines(tmp_path / "probe.jsonl", [{"text": "the small house is in the tree"}, {"text": "one cat"}])
    grammar = lines(tmp_path / "pairs.jsonl", [{"good": "the red cat runs", "bad": "red cat the runs"}])
    tenth, whole = (evaluate(bundle, None, probe, {"colors": scale}, None, grammar) for scale in (0.1, 1.0))
    assert 0 < tenth["kl"] < whole["kl"]
    assert whole["forgetting"] == pytest.approx(whole["probe_loss"] - whole["probe_base_loss"])
    bare = evaluate(bundle, None, None, {}, None, grammar)["pairs"]
    assert bare["accuracy"] == whole["pairs"]["base_accuracy"]
    assert bare["base_accuracy"] is None
    off = evaluate(bundle, None, probe, {"colors": 0.0})
    assert off["kl"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="no adapter is in use"):
        evaluate(bundle, None, probe, {})
    with pytest.raises(UsageError, match="holds lines of"):
        evaluate(bundle, None, lines(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}]), None)


def test_chat_goes_turn_by_turn(bundle: Path) -> None:
    text = f"{PROMPT}\n/adapter none\n{PROMPT}\n/adapter nobody\n/help\n/quit\n"
    done = edgeft("chat", bundle, "--max-tokens", 12, input=text)
    model = load(str(bundle))
    assert model.generate(PROMPT, max_tokens=12).strip() in done.stdout
    assert "no adapter 'nobody'" in done.stderr
    assert "/adapter NAME" in done.stdout


def test_the_runner_needs_no_torch(bundle: Path) -> None:
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'onnx', 'onnx_ir', 'peft', 'safetensors', 'mobius'):
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Block())
from edgeft.cli import main
main(['run', {str(bundle)!r}, '--prompt', {PROMPT!r}, '--json'])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"]
