"""ONNX Runtime GenAI: the config says what the base says, adapters are written for it, and where it is installed its
tokens are the runner's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.bundle_adapters import remove_adapter
from edgeft.contract.errors import UsageError
from edgeft.contract.files import read_json
from edgeft.run import load
from edgeft.run.genai import write_genai_adapters
from tests.conftest import edgeft, export_bundle, train_run

ROOT = Path(__file__).parents[2]
PROMPTS = ("the red cat", "one small dog sees", "a tree")
TOKENIZE = """
import json, sys
import onnxruntime_genai as genai
tokenizer = genai.Tokenizer(genai.Model(sys.argv[1]))
messages = json.dumps([{"role": "user", "content": "hi"}])
chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
tokenizer.update_options(add_special_tokens="true")
print(json.dumps({"chat": chat, "ids": [tokenizer.encode(text).tolist() for text in sys.argv[2:]]}))
"""


@pytest.fixture(scope="session")
def place():
    """benchmarks/place_genai.py, if GenAI is installed somewhere."""
    spec = importlib.util.spec_from_file_location("place_genai", ROOT / "benchmarks" / "place_genai.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        pytest.skip(reason)
    return module


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that may be changed."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def name_of(folder):
    return read_bundle(folder).default_adapter


def test_the_config_says_what_the_base_says(bundle, base):
    found = read_json(bundle / "genai_config.json")
    model, config = found["model"], read_json(base / "config.json")
    assert model["context_length"] == found["search"]["max_length"] == config["max_position_embeddings"]
    assert (model["bos_token_id"], model["eos_token_id"]) == (config["bos_token_id"], config["eos_token_id"])
    assert model["pad_token_id"] == config["eos_token_id"]  # the base has none
    assert (model["vocab_size"], model["type"]) == (config["vocab_size"], "llama")
    decoder = model["decoder"]
    for key in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size"):
        assert decoder[key] == config[key]
    assert decoder["head_size"] == config["hidden_size"] // config["num_attention_heads"]
    assert found["search"]["past_present_share_buffer"] is True
    inputs = {item.name for item in ort.InferenceSession(bundle / "model.onnx").get_inputs()}
    named = decoder["inputs"]
    assert inputs == {named["input_ids"], named["attention_mask"]} | {
        named[f"past_{part}_names"] % i for part in ("key", "value") for i in range(config["num_hidden_layers"])}


def test_a_pad_token_and_several_end_tokens_are_kept(make_base, tmp_path):
    base = make_base(pad_token_id=0)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    bundle = export_bundle(tmp_path / "b", base, "--quant", "fp32")
    model = read_json(bundle / "genai_config.json")["model"]
    assert (model["eos_token_id"], model["pad_token_id"]) == ([2, 4], 0)


def test_an_adapter_s_file_holds_the_graph_s_inputs(copy):
    name = name_of(copy)
    report = write_genai_adapters(copy)
    path = copy / "adapters" / f"{name}.onnx_adapter"
    assert report == {"written": {name: path.stat().st_size}, "left_out": {}}
    file = ort.AdapterFormat.read_adapter(str(path))
    values = {key: value.numpy() for key, value in file.get_parameters().items()}
    session = ort.InferenceSession(copy / "model.onnx")
    assert set(values) <= {item.name for item in session.get_overridable_initializers()}
    assert np.array_equal(values["adapter_gate"], np.ones((1, 1, 8), np.float32))
    bundle = read_bundle(copy)
    assert bundle.check_files(whole=True)
    assert f"adapters/{name}.onnx_adapter" in bundle.manifest["files"]
    before = path.read_bytes()
    write_genai_adapters(copy)
    assert path.read_bytes() == before  # so that a call cut short leaves what the manifest says
    assert load(copy).generate("the red cat", max_tokens=4).tokens
    remove_adapter(copy, name)
    assert not path.exists()
    assert read_bundle(copy).check_files(whole=True)


def test_soft_prompts_are_left_out_and_said(copy, base, data, tmp_path):
    soft = train_run(tmp_path / "soft", base, data, "--max-steps", 3, method="prompt_tuning")
    edgeft("add", copy, soft, "--name", "soft")
    done = edgeft("genai", copy)
    assert "soft: not written, a soft prompt" in done.stdout
    assert not (copy / "adapters" / "soft.onnx_adapter").exists()
    assert (copy / "adapters" / f"{name_of(copy)}.onnx_adapter").exists()


def test_a_bundle_without_adapters_is_told_so(copy):
    remove_adapter(copy, name_of(copy))
    with pytest.raises(UsageError, match="opens it as it is"):
        write_genai_adapters(copy)


def ask(place, folder, adapter, tokens=12):
    """GenAI's answers, and the runner's."""
    model = load(folder)
    questions = [{"prompt_tokens": model.encode(text, {}, raw=True), "adapter": adapter} for text in PROMPTS]
    used = {adapter: 1.0} if adapter else {}
    own = [model.generate(text, adapters=used, raw=True, max_tokens=tokens, temperature=0).tokens for text in PROMPTS]
    return place.answers(folder, questions, tokens), own


def test_genai_answers_as_the_runner_does(place, bundle):
    base, own = ask(place, bundle, None)
    tuned, own_tuned = ask(place, bundle, name_of(bundle))
    assert [answer["tokens"] for answer in base] == own
    assert [answer["tokens"] for answer in tuned] == own_tuned
    assert own != own_tuned


@pytest.mark.slow
def test_genai_takes_factors_in_the_scaled_graph(place, copy, base, data, tmp_path):
    run = train_run(tmp_path / "ia3", base, data, "--epochs", 6, "--lr", 0.1, method="ia3")
    edgeft("add", copy, run, "--name", "ia3")
    found, own = ask(place, copy, "ia3")
    assert [answer["tokens"] for answer in found] == own
    assert own != ask(place, copy, None)[1]


def test_genai_takes_a_graph_with_a_growing_cache(place, make_base, tmp_path):
    bundle = export_bundle(tmp_path / "b", make_base("gpt2"), "--quant", "fp32")
    assert read_bundle(bundle).manifest["graph"]["cache"] == "growing"
    found, own = ask(place, bundle, None)
    assert [answer["tokens"] for answer in found] == own


def test_genai_reads_the_tokenizer_and_the_chat_template(place, bundle):
    done = subprocess.run([place.python(), "-c", TOKENIZE, bundle, *PROMPTS], capture_output=True, text=True,
                          check=True, env=place._environment())
    found = json.loads(done.stdout)
    model = load(bundle)
    assert found["ids"] == [model.encode(text, {}, raw=True) for text in PROMPTS]
    assert found["chat"] == "<|user|>hi</s><|assistant|>"


def test_the_place_says_what_it_lacks(monkeypatch):
    monkeypatch.setenv("EDGEFT_GENAI_PYTHON", "/nowhere/python")
    spec = importlib.util.spec_from_file_location("place_genai", ROOT / "benchmarks" / "place_genai.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "make genai" in module.missing()
    monkeypatch.setenv("EDGEFT_GENAI_PYTHON", sys.executable)
    assert "has no onnxruntime-genai" in module.missing()
