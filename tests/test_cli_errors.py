"""A user's mistake: one clear message on stderr, exit code 1 or 2, no traceback, nothing at --out."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edgeft import cli
from edgeft.contract.bundle import FORMAT, MANIFEST
from edgeft.contract.tensors import write_tensors
from edgeft.run_commands import adapters_option
from edgeft.starter import MODEL

DEVICE = "cpu-x86_64"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": None}


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """fails(code, *arguments) -> the message; whatever was in the folder before is all that is there afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(code, *arguments):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert caught.value.code == code, err
        assert out == ""
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return err

    return call


@pytest.fixture
def data(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    return "d.jsonl"


def peft_folder(path, config=LORA, names=("q_proj",)):
    """A PEFT folder with ones in it."""
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.layers.0.self_attn."
    write_tensors(path / "adapter_model.safetensors", {
        f"{module}{name}.lora_{side}.weight": np.ones(shape, np.float32)
        for name in names for side, shape in (("A", (2, 8)), ("B", (8, 2)))})
    return path


# --- words that are off: exit code 2


@pytest.mark.parametrize(("arguments", "said"), [
    (["exprot"], "There is no command 'exprot'. Did you mean 'export'"),
    (["train", "lra"], "There is no method 'lra'. Did you mean 'lora'"),
    (["export", ".", "--device", "cpu-x86", "--out", "o"], "There is no device 'cpu-x86'. Did you mean 'cpu-x86_64'"),
    (["devices", "rasberry-pi-5"], "Did you mean 'raspberry-pi-5'"),
    (["train", "lora", "--rnak", "3", "--out", "o"], "--rnak"),
    (["train", "lora", "--rank", "x", "--base", "b", "--data", "d", "--out", "o"], "--r: takes a whole number"),
    (["train", "lora", "--rank", "0", "--base", "b", "--data", "d", "--out", "o"], "at least 1, found 0"),
    (["train", "lora", "--schedule", "no", "--out", "o"], "'cosine', 'linear', 'constant'"),
    (["train", "lora", "--base", "b", "--data", "d"], "--out"),
    (["train", "lora", "--data", "d", "--out", "o"], "--base is missing"),
    (["train", "lora", "--base", "b", "--out", "o"], "--data is missing"),
    (["train", "lora", "--config", "none.toml", "--out", "o"], "none.toml: cannot be read"),
    (["train", "lora", "--resume", "--out", "none"], "none"),
    (["export", "none", "--device", DEVICE, "--out", "o"], "none: there is no such folder"),
    (["export", ".", "--device", DEVICE], "--out"),
    (["export", ".", "--device", DEVICE, "--out", "o", "--quant", "int3"], "'int4', 'int8'"),
    (["run", "none", "--prompt", "p"], "none: there is no such bundle"),
    (["run", ".", "--prompt", "p", "--max-tokens", "0"], "--max-tokens"),
    (["run", ".", "--prompt", "p", "--temperature", "-1"], "--temperature"),
    (["run", "."], "--prompt"), (["run", ".", "--prompt", "p"], "is no bundle"), (["chat", "."], "is no bundle"),
    (["bench", "."], "is no bundle"), (["verify", "."], "is no bundle"), (["remove", ".", "x"], "is no bundle"),
    (["add", ".", ".", "--name", "x"], "is no bundle"),
], ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "")
def test_words_that_are_off(fails, arguments, said):
    assert said in fails(2, *arguments)


def test_unknown_option_of_a_config_file(fails, tmp_path, data):
    (tmp_path / "c.toml").write_text("learning-rat = 1")
    message = fails(2, "train", "lora", "--config", "c.toml", "--base", "b", "--data", data, "--out", "o")
    assert "there is no option 'learning_rat'. Did you mean 'learning_rate'" in message


def test_a_config_file_that_is_not_toml(fails, tmp_path):
    (tmp_path / "c.toml").write_text("learning-rate = ")
    assert "c.toml: is not TOML" in fails(2, "train", "lora", "--config", "c.toml", "--out", "o")


@pytest.mark.parametrize("text", ["menu:x", "menu:1:2", "none", "menu"])
def test_adapter_words(fails, tmp_path, text):
    """Each is wrong beside a plain `menu`: a scale that is no number, none with others, one twice."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST).write_text("{}")
    message = fails(2, "bench", "b", "--adapter", "menu", "--adapter", text)
    assert f"--adapter {text}: " in message


def test_adapter_words_that_are_right():
    assert adapters_option(()) is None
    assert adapters_option(("none",)) == {}
    assert adapters_option(("menu", "light:0.5", "x:-1")) == {"menu": 1.0, "light": 0.5, "x": -1.0}


def test_out_that_exists(fails, tmp_path, data):
    (tmp_path / "o").mkdir()
    assert "o: already exists" in fails(2, "train", "lora", "--base", "b", "--data", data, "--out", "o")
    peft_folder(tmp_path / "p")
    assert "o: already exists" in fails(2, "export", "p", "--device", DEVICE, "--out", "o")


def test_out_that_holds_an_unfinished_run(fails, tmp_path, data):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "settings.json").write_text("{}")
    assert "Go on with --resume" in fails(2, "train", "lora", "--base", "b", "--data", data, "--out", "o")


# --- bases and data


@pytest.mark.parametrize(("base", "said"), [
    ("nothing-here", "base 'nothing-here': there is no such folder"), ("./a/b/c", "there is no such folder"),
    ("d.jsonl", "there is no such folder"), ("p", "base 'p': the folder is a PEFT adapter, not a base"),
    ("empty", "has no config.json"), ("edgeft-test/not-on-this-machine", "the hub did not give it")])
def test_a_base_that_is_none(fails, tmp_path, data, base, said):
    peft_folder(tmp_path / "p")
    (tmp_path / "empty").mkdir()
    assert said in fails(2, "train", "lora", "--base", base, "--data", data, "--out", "o")


@pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="the starter is not trained yet")
@pytest.mark.parametrize(("lines", "code", "said"), [
    ('{"prompt": "p", "completion": "c"}\n{"prompt": "p"}\n', 1, "line 2: has 'prompt' but no 'completion'"),
    ("", 1, "holds no lines"), (None, 2, "d.jsonl: cannot be read")])
def test_broken_data(fails, tmp_path, data, lines, code, said):
    (tmp_path / data).unlink()
    if lines is not None:
        (tmp_path / data).write_text(lines)
    message = fails(code, "train", "lora", "--base", "starter", "--data", data, "--out", "o")
    assert "d.jsonl" in message
    assert said in message


# --- what cannot be exported


def export(fails, code, source, *more):
    return fails(code, "export", source, "--device", DEVICE, "--out", "o", *more)


def test_export_of_a_folder_that_is_nothing(fails, tmp_path):
    (tmp_path / "x").mkdir()
    assert "x: is neither a run of edgeft, nor a PEFT folder" in export(fails, 2, "x")


def test_export_of_a_run_that_has_not_ended(fails, tmp_path):
    (tmp_path / "x" / "checkpoints").mkdir(parents=True)
    message = export(fails, 2, "x")
    assert "this training has not ended" in message
    assert "--resume" in message


def test_export_of_a_bundle(fails, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / MANIFEST).write_text("{}")
    assert "is a bundle already" in export(fails, 2, "x")


def test_export_of_a_peft_type_that_depends_on_its_input(fails, tmp_path):
    peft_folder(tmp_path / "p", {"peft_type": "POLY"})
    assert "p: POLY cannot be exported: it routes by a task id" in export(fails, 1, "p")


@pytest.mark.parametrize("kind", ["LOKI", ""])
def test_export_of_a_peft_type_that_there_is_not(fails, tmp_path, kind):
    peft_folder(tmp_path / "p", {**LORA, "peft_type": kind})
    assert f"PEFT type '{kind or 'missing'}' is none that PEFT has" in export(fails, 2, "p")


def test_export_of_a_lora_that_computes_otherwise(fails, tmp_path):
    peft_folder(tmp_path / "p", {**LORA, "use_dora": True, "from_the_future": 3})
    assert "p: LORA with from_the_future=3 cannot be exported" in export(fails, 1, "p")


def test_export_of_a_peft_field_that_nobody_knows(fails, tmp_path):
    peft_folder(tmp_path / "p", {**LORA, "from_the_future": 3})
    assert "p: LORA with from_the_future=3 cannot be exported: this version of PEFT" in export(fails, 1, "p")


def test_export_of_pickled_weights(fails, tmp_path):
    folder = peft_folder(tmp_path / "p")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is pickled, which can run code" in export(fails, 1, "p")


def test_export_without_weights(fails, tmp_path):
    (peft_folder(tmp_path / "p") / "adapter_model.safetensors").unlink()
    message = export(fails, 1, "p")
    assert "adapter_model.safetensors: is not there" in message
    assert "pickled" not in message


def test_export_of_weights_cut_short(fails, tmp_path):
    path = peft_folder(tmp_path / "p") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "adapter_model.safetensors" in export(fails, 1, "p")


def test_export_of_weights_that_are_no_numbers(fails, tmp_path):
    folder = peft_folder(tmp_path / "p")
    write_tensors(folder / "adapter_model.safetensors", {"a.lora_A.weight": np.array([[np.nan]], np.float32)})
    assert "a.lora_A.weight: holds NaN" in export(fails, 1, "p")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_export_of_a_broken_adapter_config(fails, tmp_path, text):
    (peft_folder(tmp_path / "p") / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in export(fails, 1, "p")


def test_export_of_an_adapter_that_names_no_base(fails, tmp_path):
    peft_folder(tmp_path / "p")
    assert "p: does not say which base it belongs to. Name it with --base." in export(fails, 2, "p")


def test_export_of_an_adapter_whose_base_is_gone(fails, tmp_path):
    peft_folder(tmp_path / "p", {**LORA, "base_model_name_or_path": "/gone"})
    assert "base '/gone': there is no such folder" in export(fails, 2, "p")


def test_export_of_an_adapter_with_another_adapter_as_base(fails, tmp_path):
    peft_folder(tmp_path / "p")
    assert "is a PEFT adapter, not a base" in export(fails, 2, "p", "--base", "p")


def test_export_in_what_the_device_does_not_compute(fails, tmp_path):
    peft_folder(tmp_path / "p")
    assert "--quant fp16: cpu-x86_64 does not compute in it" in export(fails, 2, "p", "--quant", "fp16")


# --- bundles


def test_a_bundle_of_another_format(fails, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST).write_text(json.dumps({"format": FORMAT + 1}))
    assert f"this edgeft reads {FORMAT}" in fails(1, "run", "b", "--prompt", "p")


def test_a_bundle_with_a_broken_manifest(fails, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST).write_text("{")
    for words in (["run", "b", "--prompt", "p"], ["verify", "b"], ["chat", "b"]):
        assert "is not JSON" in fails(1, *words)


def test_eval_of_an_adapter_with_words_for_bundles(fails, tmp_path, data):
    peft_folder(tmp_path / "p")
    assert "--adapter is for bundles" in fails(2, "eval", "p", "--data", data, "--adapter", "x")


# --- from outside, as a user sees it


@pytest.mark.parametrize(("arguments", "code"), [(["exprot"], 2), (["run", ".", "--prompt", "p"], 2), (["--help"], 0)])
def test_exit_code_of_the_process(tmp_path, arguments, code):
    done = subprocess.run([sys.executable, "-m", "edgeft", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert bool(done.stderr) == bool(code)
    assert "Traceback" not in done.stderr


def test_a_pipe_that_closes_is_no_error(tmp_path):
    if not shutil.which("sh"):
        pytest.skip("needs a shell")
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m edgeft --help | true"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.stderr == ""
