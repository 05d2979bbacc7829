"""A model's sizes: from headers, from a config alone, from a bundle; no weight is read."""

import json
import shutil

import numpy as np
import pytest

from edgeft.contract.bundle import read_bundle
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.shape import read_shape
from edgeft.contract.tensors import TensorFile, Weights, write_tensors
from edgeft.starter import MODEL

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40, "hidden_size": 8,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12,
         "max_position_embeddings": 64, "tie_word_embeddings": True}


def folder_of(path, config, tensors=None):
    """A model folder; tensors by name and shape."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        zeros = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
        write_tensors(path / "model.safetensors", zeros)
    return path


def test_every_number_of_the_starter_is_counted():
    shape, recorded = read_shape("starter")
    assert recorded is None
    assert shape.tied
    assert shape.linear + shape.table + shape.rest == Weights(MODEL).parameters
    assert shape.head == shape.table == shape.vocabulary * shape.hidden


def test_no_weight_is_read(monkeypatch):
    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(TensorFile, "raw", read)
    assert read_shape(MODEL)[0].linear
    with pytest.raises(AssertionError, match="was read"):
        Weights(MODEL)["model.norm.weight"]


def test_a_config_alone_tells_the_same(make_base, tmp_path):
    base = make_base("llama")
    whole, _ = read_shape(base)
    alone = tmp_path / base.name
    alone.mkdir()
    shutil.copy(base / "config.json", alone)
    told, _ = read_shape(alone)
    assert {(group.in_features, group.out_features) for group in told.groups} == \
        {(group.in_features, group.out_features) for group in whole.groups}
    assert (told.linear, told.table, told.head, told.cached) == (whole.linear, whole.table, whole.head, whole.cached)


def test_layers_that_read_one_input_are_together(tmp_path):
    shape, _ = read_shape(folder_of(tmp_path / "m", LLAMA))
    found = {tuple(module.rpartition(".")[2] for module in group.modules): group.out_features for group in shape.groups}
    assert found == {("q_proj", "k_proj", "v_proj"): (8, 4, 4), ("o_proj",): (8,), ("gate_proj", "up_proj"): (12, 12),
                     ("down_proj",): (8,)}
    assert shape.widest == 24
    assert shape.cached == 2 * 2 * 2 * 2


def test_a_head_of_its_own(tmp_path):
    shape, _ = read_shape(folder_of(tmp_path / "m", LLAMA, {
        "model.embed_tokens.weight": (40, 8), "model.layers.0.mlp.up_proj.weight": (12, 8), "model.norm.weight": (8,),
        "lm_head.weight": (40, 8)}))
    assert not shape.tied
    assert (shape.linear, shape.table, shape.head, shape.rest) == (96, 320, 320, 8)


def test_gpt2_stores_its_layers_the_other_way_round(make_base):
    shape, _ = read_shape(make_base("gpt2"))
    joint = next(group for group in shape.groups if group.modules[0].endswith("c_attn"))
    assert (joint.in_features, joint.out_features) == (64, (192,))
    assert shape.rest > 256 * 64, "positions stay floats"


def test_an_encoder_leaves_nothing_behind(tmp_path):
    tensors = {"embeddings.word_embeddings.weight": (40, 8), "embeddings.position_embeddings.weight": (64, 8),
               "encoder.layer.0.attention.self.query.weight": (8, 8)}
    shape, _ = read_shape(folder_of(tmp_path / "e", {**LLAMA, "model_type": "bert"}, tensors))
    assert (shape.encodes, shape.cached, shape.head, shape.table, shape.rest) == (True, 0, 0, 320, 512)
    decoder, _ = read_shape(folder_of(tmp_path / "d", LLAMA, tensors))
    assert not decoder.encodes
    assert decoder.cached


def test_a_bundle_tells_the_same_as_its_base(bundle):
    shape, recorded = read_shape(bundle)
    manifest = read_bundle(bundle).manifest
    base, _ = read_shape(manifest["base"]["folder"])
    for field in ("linear", "table", "head", "tied", "rest", "layers", "heads", "kv_heads", "head_dim", "vocabulary",
                  "cached", "widest"):
        assert getattr(shape, field) == getattr(base, field), field
    assert recorded.quant.kind == manifest["quant"]["kind"]
    assert recorded.context == manifest["context"]
    assert recorded.slots


@pytest.mark.parametrize(("change", "said"), [
    ({"hidden_size": None}, "has no hidden_size"), ({"hidden_size": "8"}, "hidden_size must be a positive"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be"), ({"vocab_size": None}, "has no vocab_size"),
    ({"model_type": "gpt2"}, "holds no model.safetensors"), ({"intermediate_size": None}, "has no intermediate_size")])
def test_a_config_that_says_too_little(tmp_path, change, said):
    config = {key: value for key, value in {**LLAMA, **change}.items() if value is not None}
    with pytest.raises(EdgeftError, match=said):
        read_shape(folder_of(tmp_path / "m", config))


def test_folders_that_are_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    for name, said in (("empty", "no config.json"), ("peft", "Name its base"), ("none", "no such folder")):
        with pytest.raises(UsageError, match=said):
            read_shape(tmp_path / name)
    with pytest.raises(EdgeftError, match="no language model"):
        read_shape(folder_of(tmp_path / "other", LLAMA, {"vision.weight": (40, 8)}))
