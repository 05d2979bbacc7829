"""Bundles against torch: the export's own verification, and a second look by an oracle written here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import load
from tests.conftest import edgeft, export_bundle, lines, pairs, train_run

PROMPTS = ["the red cat runs a tree", "the blue house sees", "one two"]


def torch_greedy(base: Path, run: Path | None, prompt: str, new: int = 24) -> list[int]:
    """PEFT's own greedy answer, without a cache."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    if run is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, run)
    ids = AutoTokenizer.from_pretrained(base)(prompt)["input_ids"]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < new and (not found or found[-1] != 2):
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def parity(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())["parity"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_beside_equals_peft_with_and_without_the_adapter(bundle: Path, base: Path, lora_run: Path,
                                                         prompt: str) -> None:
    model = load(str(bundle))
    tuned = model.generate(prompt, max_tokens=24).tokens
    plain = model.generate(prompt + "\n", adapters={}, max_tokens=24).tokens
    assert tuned == torch_greedy(base, lora_run, prompt + "\n")
    assert plain == torch_greedy(base, None, prompt + "\n")
    assert tuned != plain


def test_merged_equals_beside(bundle: Path, base: Path, lora_run: Path, tmp_path: Path) -> None:
    merged = load(str(export_bundle(tmp_path / "merged", lora_run, "--merge", "--quant", "fp32")))
    beside = load(str(bundle))
    for prompt in PROMPTS:
        assert merged.generate(prompt).tokens == beside.generate(prompt).tokens
    assert not merged.bundle.slots
    assert merged.bundle.fingerprint != beside.bundle.fingerprint


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_integer_bundles_equal_torch_on_their_own_weights(lora_run: Path, tmp_path: Path, quant: str) -> None:
    found = parity(export_bundle(tmp_path / quant, lora_run, "--quant", quant))
    for report in (found["base"], found["adapters"]["colors"]):
        assert report["exact_activations"]["largest_logit_difference"] < 1e-3
        assert report["exact_activations"]["greedy_equal"] == report["prompts"]
        assert report["against_float"]["kl"] > report["exact_activations"]["kl"]


def test_fp16_is_for_devices_that_compute_in_it(lora_run: Path, tmp_path: Path) -> None:
    done = edgeft("export", lora_run, "--device", "cpu-x86_64", "--quant", "fp16", "--out", tmp_path / "no",
                  check=False)
    assert done.returncode == 2
    assert "fp32, int8, int4" in done.stderr
    edgeft("export", lora_run, "--device", "raspberry-pi-5", "--quant", "fp16", "--out", tmp_path / "yes")
    assert parity(tmp_path / "yes")["adapters"]["colors"]["agreement"] > 0.97


def test_a_tied_head_is_stored_once(int4_bundle: Path) -> None:
    import onnx_ir as ir

    model = ir.load(int4_bundle / "model.onnx")
    places = {name: (value.const_value.offset, value.const_value.length)
              for name, value in model.graph.initializers.items()
              if (isinstance(value.const_value, ir.ExternalTensor) and "codes" in name) or "table" in name}
    assert places["lm_head.codes"] == places["model.embed_tokens.weight.table"]


def plain_peft(base: Path, out: Path, seed: int = 0, **options: Any) -> Path:
    """A LoRA that plain PEFT wrote, its B not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied heads: they are what is tested here
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(out, save_embedding_layers=False)
    return out


@pytest.mark.parametrize("merge", [False, True])
def test_a_plain_peft_folder_goes_straight_in(base: Path, tmp_path: Path, merge: bool) -> None:
    folder = plain_peft(base, tmp_path / "wild", r=4, lora_alpha=6, use_rslora=True,
                        target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
                        rank_pattern={"layers.1.self_attn.q_proj": 7}, alpha_pattern={"down_proj": 3})
    out = export_bundle(tmp_path / "bundle", folder, "--quant", "fp32", *(["--merge"] if merge else []))
    model = load(str(out))
    for prompt in PROMPTS:
        assert model.generate(prompt, max_tokens=24).tokens == torch_greedy(base, folder, prompt)
    if not merge:
        assert "lm_head.A" in TensorFile(out / "adapters" / "wild.safetensors")
        assert model.shelf.opened["wild"].rank == 7


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]}])
def test_what_no_slot_can_hold_is_refused_beside_and_right_when_merged(base: Path, tmp_path: Path,
                                                                       options: dict[str, Any]) -> None:
    folder = plain_peft(base, tmp_path / "wild", r=4, **options)
    done = edgeft("export", folder, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "--merge" in done.stderr
    assert not (tmp_path / "b").exists()
    report = parity(export_bundle(tmp_path / "merged", folder, "--quant", "fp32", "--merge"))["base"]
    assert report["largest_logit_difference"] < 1e-3
    assert report["greedy_equal"] == report["prompts"]


def test_full_tuning_exports_as_a_model_of_its_own(base: Path, data: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", base, data, "--epochs", 10, "--lr", 0.003, method="full")
    model = load(str(export_bundle(tmp_path / "bundle", run, "--quant", "fp32")))
    for prompt in PROMPTS:
        assert model.generate(prompt, max_tokens=24).tokens == torch_greedy(run, None, prompt + "\n")
    assert model.generate(PROMPTS[0]).tokens != load(str(export_bundle(
        tmp_path / "base", base, "--quant", "fp32"))).generate(PROMPTS[0] + "\n").tokens


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "builder", "extra"), [
    ("qwen2", "mobius", {}), ("qwen3", "mobius", {"head_dim": 16}), ("mistral", "mobius", {}),
    ("phi3", "mobius", {"pad_token_id": 0}), ("gemma2", "mobius", {"head_dim": 16}),
    ("gpt2", "transformers", {"n_inner": 96}), ("gpt_neox", "transformers", {"rotary_pct": 0.5}),
    ("jais2", "transformers", {}), ("smollm3", "mobius", {"pad_token_id": 0}), ("olmo2", "mobius", {}),
    ("granite", "mobius", {}), ("opt", "transformers", {"ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 0}),
    ("gemma2", "transformers", {"head_dim": 16, "sliding_window": 8}),
    ("gemma3_text", "transformers", {"head_dim": 16, "sliding_window": 8,
                                     "layer_types": ["sliding_attention", "full_attention"]})])
def test_architectures_take_a_lora(make_base: Callable[..., Path], tmp_path: Path, model_type: str, builder: str,
                                   extra: dict[str, Any]) -> None:
    """Fused, split and transposed weights all get their slots under Hugging Face names, traced graphs too."""
    base = make_base(model_type, **extra)
    folder = plain_peft(base, tmp_path / "wild", r=4, target_modules="all-linear")
    for quant in ("fp32", "int4"):
        out = export_bundle(tmp_path / quant, folder, "--quant", quant)
        assert json.loads((out / "bundle.json").read_text())["graph"]["builder"] == builder
    model = load(str(tmp_path / "fp32"))
    assert model.generate(PROMPTS[0]).tokens == torch_greedy(base, folder, PROMPTS[0], 128)
    alone = [model.generate(prompt, adapters=adapters, max_tokens=12).tokens
             for prompt, adapters in zip(PROMPTS, ({"wild": 1.0}, {}, {"wild": 0.5}), strict=True)]
    batch = model.batch(PROMPTS, adapters=[{"wild": 1.0}, {}, {"wild": 0.5}], max_tokens=12)
    assert [answer.tokens for answer in batch] == alone


def test_an_adapter_that_does_nothing_fails(base: Path, tmp_path: Path) -> None:
    from edgeft.contract.tensors import TensorFile as File

    folder = plain_peft(base, tmp_path / "idle", r=4, target_modules=["q_proj"])
    file = File(folder / "adapter_model.safetensors")
    zeroed = {name: np.zeros_like(file[name]) if "lora_B" in name else np.array(file[name]) for name in file}
    write_tensors(folder / "adapter_model.safetensors", zeroed)
    done = edgeft("export", folder, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "changes no logit" in done.stderr
    assert not (tmp_path / "b").exists()


def test_an_adapter_of_another_base_is_refused(make_base: Callable[..., Path], lora_run: Path, base: Path,
                                               tmp_path: Path) -> None:
    other = make_base(seed=5)
    done = edgeft("export", lora_run, "--base", other, "--device", "cpu-x86_64", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "fingerprint" in done.stderr
    deeper = plain_peft(make_base(num_hidden_layers=3), tmp_path / "deeper", r=4, target_modules=["q_proj"])
    done = edgeft("export", deeper, "--base", base, "--device", "cpu-x86_64", "--out", tmp_path / "b", check=False)
    assert done.returncode == 1
    assert "model.layers.2" in done.stderr
    wider = plain_peft(make_base(hidden_size=128), tmp_path / "wider", r=4, target_modules=["q_proj"])
    for options in ([], ["--merge"]):
        done = edgeft("export", wider, "--base", base, "--device", "cpu-x86_64", "--out", tmp_path / "b", *options,
                      check=False)
        assert done.returncode == 1
        assert "--base" in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_wrong_graph_fails_verification(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification has teeth: an exporter that loses a layer's weights leaves no bundle behind."""
    from edgeft.cli import main
    from edgeft.export import assemble

    right = assemble.Assembly._rows
    monkeypatch.setattr(assemble.Assembly, "_rows", lambda self, pieces: right(self, pieces) * 1.01)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(lora_run), "--device", "cpu-x86_64", "--quant", "fp32", "--out", str(tmp_path / "b")])
    assert ended.value.code == 1
    assert list(tmp_path.iterdir()) == []


def test_add_and_remove(bundle: Path, base: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    second = train_run(tmp_path / "second", base, lines(tmp_path / "d.jsonl", pairs(30, 7)), "--max-steps", 20,
                       "--lr", 0.02, "--r", 3)
    report = json.loads(edgeft("add", copy, second, "--name", "second", "--json").stdout)
    assert report["largest_logit_difference"] < 1e-3
    model = load(str(copy))
    assert model.generate(PROMPTS[0], adapters={"second": 1.0}).tokens == \
        torch_greedy(base, second, PROMPTS[0] + "\n", 128)
    assert edgeft("add", copy, second, "--name", "second", check=False).returncode == 2
    edgeft("verify", copy)
    edgeft("remove", copy, "second")
    assert sorted(load(str(copy)).bundle.adapters) == ["colors"]
    edgeft("verify", copy)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
