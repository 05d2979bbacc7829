"""`edgeft fit`: what it tells, what would help where it does not fit, and that export refuses by the same numbers."""

import json
import re

import pytest

from edgeft import cli
from edgeft.starter import MODEL

DEVICE = """summary = "A board"
verified = "checked"
[limits]
memory_mib = 8192
budget_mib = {budget}
bandwidth_gb_s = 10
[cpu]
arch = "x86_64"
isa = ["avx2"]
threads = 2
[graph]
quant = "{quant}"
block = {block}
context = {context}
slots = ["lowrank", "prefix"]
"""
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 1024,
          "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 4096,
          "max_position_embeddings": 4096, "tie_word_embeddings": False}


@pytest.fixture
def board(tmp_path):
    """board(budget=..., ...) -> the path of a device file."""
    def write(budget=4096, quant="int4", block=128, context=2048):
        path = tmp_path / "board.toml"
        path.write_text(DEVICE.format(budget=budget, quant=quant, block=block, context=context))
        return str(path)
    return write


@pytest.fixture
def model(tmp_path):
    """A folder with nothing but the config of a model of some size."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "model")


@pytest.fixture
def edgeft(capsys):
    """edgeft(...) -> exit code, stdout, stderr."""
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return caught.value.code, out, err
    return call


def told(edgeft, *arguments):
    code, out, _ = edgeft("fit", *arguments, "--json")
    found = json.loads(out)
    assert code == (0 if found["fits"] else 1)
    return found


def test_what_it_tells(edgeft):
    found = told(edgeft, "starter", "--device", "cpu-x86_64")
    assert {"fits", "peak_mib", "prefill_tokens_per_s", "decode_tokens_per_s", "parts",
            "installed_peak_mib"} <= found.keys()
    assert found["fits"]
    assert found["ways"] == []
    assert sum(found["parts"].values()) == pytest.approx(found["peak_mib"], abs=0.5)
    code, out, err = edgeft("fit", "starter", "--device", "cpu-x86_64")
    assert (code, err) == (0, "")
    assert f"{found['peak_mib']:,.1f} MiB" in out
    assert f"{found['decode_tokens_per_s']:,.1f} tokens/s" in out


def test_every_device_of_ours_can_be_asked(edgeft, model):
    code, out, _ = edgeft("devices", "--json")
    assert code == 0
    speeds = {name: told(edgeft, model, "--device", name)["decode_tokens_per_s"] for name in json.loads(out)}
    assert speeds["raspberry-pi-4"] < speeds["raspberry-pi-5"] < speeds["apple-silicon"]


def test_ways_are_in_order_and_true(edgeft, model, board):
    asked = (model, "--device", board(budget=700, quant="fp32"), "--adapters", "4", "--context", "2048")
    found = told(edgeft, *asked)
    assert not found["fits"]
    assert found["over_mib"] == pytest.approx(found["peak_mib"] - 700, abs=0.2)
    assert all(way["peak_mib"] < found["peak_mib"] for way in found["ways"])
    names = [way["change"] for way in found["ways"]]
    kinds = [next((index for index, word in enumerate(("resident", "context", "int8", "int4", "together"))
                   if word in name)) for name in names if "install" not in name]
    assert kinds == sorted(kinds)
    int4 = next(way for way in found["ways"] if "int4" in way["change"])
    again = told(edgeft, *asked, "--quant", "int4")
    assert int4["peak_mib"] == again["peak_mib"]
    assert int4["fits"] == again["fits"]


def test_the_longest_context_that_fits_is_named(edgeft, model, board):
    roomy = told(edgeft, model, "--device", board())
    device = board(budget=int(roomy["peak_mib"]) - 60)
    found = told(edgeft, model, "--device", device)
    way = next(way for way in found["ways"] if "context" in way["change"])
    length = int(re.search(r"(\d+) tokens", way["change"])[1])
    assert way["fits"]
    assert told(edgeft, model, "--device", device, "--context", length)["fits"]
    assert not told(edgeft, model, "--device", device, "--context", length + 64)["fits"]


def test_too_little_for_anything(edgeft, model, board):
    found = told(edgeft, model, "--device", board(budget=50, quant="fp32"), "--adapters", "2")
    assert not any(way["fits"] for way in found["ways"])
    assert found["ways"][-1]["change"] == "all of these together"
    assert found["ways"][-1]["peak_mib"] == min(way["peak_mib"] for way in found["ways"])


def test_the_message_where_it_does_not_fit(edgeft, model, board):
    code, out, err = edgeft("fit", model, "--device", board(budget=300))
    assert code == 1
    assert "peak" in out
    assert "model does not fit board" in err
    assert "the cheapest first" in err


def test_export_refuses_by_the_same_numbers(edgeft, board, tmp_path):
    device = board(budget=60, context=256)
    found = told(edgeft, MODEL, "--device", device)
    code, out, err = edgeft("export", MODEL, "--device", device, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert f"would take {found['peak_mib']:,.0f} MiB" in err
    assert f"{found['over_mib']:,.0f} MiB too much" in err
    assert "context of" in err
    assert not (tmp_path / "out").exists()


def test_a_bundle_says_what_it_was_made_for(edgeft, bundle, board):
    found = told(edgeft, bundle, "--device", board())
    assert found["quant"]["kind"] == "fp32"
    assert found["adapters"] == 1
    assert told(edgeft, bundle, "--device", board(), "--adapters", "0")["peak_mib"] < found["peak_mib"]
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["memory"]["predicted_peak_mib"] == pytest.approx(
        told(edgeft, bundle, "--device", "cpu-x86_64", "--context", found["context"])["peak_mib"], rel=0.02)
    assert manifest["memory"]["installed_peak_mib"] > 0
    code, _, err = edgeft("fit", bundle, "--device", board(), "--quant", "int4")
    assert code == 2
    assert "is a bundle on fp32" in err


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["starter", "--device", "rasberry-pi-5"], 2, "Did you mean 'raspberry-pi-5'"),
    (["starter"], 2, "--device"), (["--device", "cuda"], 2, "MODEL_DIR"),
    (["nowhere", "--device", "cuda"], 2, "there is no such folder"),
    (["starter", "--device", "cuda", "--context", "9999999"], 2, "tokens at most"),
    (["starter", "--device", "cuda", "--context", "0"], 2, "--context"),
    (["starter", "--device", "cuda", "--adapters", "-1"], 2, "--adapters"),
    (["starter", "--device", "cuda", "--rank", "0"], 2, "--rank"),
    (["starter", "--device", "cuda", "--quant", "int3"], 2, "'int4', 'int8'"),
    (["starter", "--device", "raspberry-pi-4", "--quant", "fp16"], 2, "does not compute in it"),
    (["starter", "--device", "nothing.toml"], 1, "nothing.toml"),
    ([".", "--device", "cuda"], 2, "no config.json")])
def test_words_that_are_off(edgeft, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, out, err = edgeft("fit", *arguments)
    assert found == code
    assert out == ""
    assert said in err
