"""Bundles that classify and embed: equal to PEFT and transformers, adapters with labels of their own side by side."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.bundle import SCALED_GRAPH
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.heads import Head
from edgeft.contract.tensors import TensorFile, write_tensors
from edgeft.run import load
from tests.conftest import export_bundle, lines

from .conftest import call, texts, train_classifier

ASKED = [line["text"] for line in texts(7, 100)]
COLORS = ["blue", "green", "red"]
Scores = list[dict[str, float]]


def torch_scores(base: Path, run: Path | None, labels: list[str]) -> Scores:
    """Label -> score of each text by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    if run is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, run)
    model.eval()
    with torch.no_grad():
        return [dict(zip(labels, model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1).tolist(),
                         strict=True)) for text in ASKED]


def check(found: list[list[tuple[str, float]]], wanted: Scores) -> None:
    for scores, right in zip(found, wanted, strict=True):
        assert scores[0][0] == max(right, key=lambda label: right[label])
        assert dict(scores) == pytest.approx(right, abs=1e-4)


def differs(found: list[list[tuple[str, float]]], other: Scores) -> bool:
    return any(abs(score - right[label]) > 3e-4 for scores, right in zip(found, other, strict=True)
               for label, score in scores)


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


@pytest.fixture(scope="session")
def bert_bundle(tmp_path_factory: pytest.TempPathFactory, bert_run: Path, bert: Path, things: Path) -> Path:
    """One encoder with two adapters, of three colors and of four things."""
    folder = tmp_path_factory.mktemp("bundles")
    bundle = export_bundle(folder / "bert", bert_run, "--quant", "fp32")
    second = train_classifier(folder / "things", bert, things)
    call("add", bundle, second, "--name", "things")
    return bundle


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "deberta-v2", "llama"])
def test_a_lora_beside_equals_peft(any_base: Callable[[str], Path], colors: Path, tmp_path: Path,
                                   model_type: str) -> None:
    base = any_base(model_type)
    run = train_classifier(tmp_path / "colors", base, colors, "--max-steps", 40)
    model = load(export_bundle(tmp_path / "beside", run, "--quant", "fp32"))
    wanted = torch_scores(base, run, COLORS)
    check(model.classify(ASKED), wanted)
    off = [dict(scores) for scores in model.classify(ASKED, adapters={"colors": 0.0})]
    assert differs(model.classify(ASKED, adapters={"colors": 0.0}), wanted)
    mixed = model.classify(ASKED, adapters=[{"colors": float(row % 2)} for row in range(len(ASKED))])
    check(mixed, [wanted[row] if row % 2 else off[row] for row in range(len(ASKED))])
    assert model.task() == "text-classification"
    assert model.task({}) == ("text-generation" if model_type == "llama" else "feature-extraction")
    assert "head.0.weight" in TensorFile(tmp_path / "beside" / "adapters" / "colors.safetensors")


def test_ia3_classifies_beside_and_a_soft_prompt_says_that_it_cannot(any_base: Callable[[str], Path], colors: Path,
                                                                     tmp_path: Path) -> None:
    base = any_base("llama")
    run = train_classifier(tmp_path / "colors", base, colors, "--max-steps", 40, method="ia3")
    model = load(export_bundle(tmp_path / "beside", run, "--quant", "fp32"))
    wanted = torch_scores(base, run, COLORS)
    check(model.classify(ASKED), wanted)
    assert SCALED_GRAPH in model.graphs.opened
    assert differs(model.classify(ASKED, adapters={"colors": 0.0}), wanted)
    call("train", "prompt_tuning", "--base", base, "--data", colors, "--out", tmp_path / "soft", code=1)


def test_adapters_with_their_own_labels_share_an_encoder(bert_bundle: Path, bert: Path, bert_run: Path) -> None:
    model = load(bert_bundle)
    things = bert_bundle.parent / "things"
    wanted = {"colors": torch_scores(bert, bert_run, COLORS),
              "things": torch_scores(bert, things, json.loads((things / "edgeft.json").read_text())["labels"])}
    for name, scores in wanted.items():
        check(model.classify(ASKED, adapters={name: 1.0}), scores)
    names = ["colors", "things"] * 3 + ["colors"]
    mixed = model.classify(ASKED, adapters=[{name: 1.0} for name in names])
    check(mixed, [wanted[name][row] for row, name in enumerate(names)])
    assert {label for label, _ in mixed[0]} == set(COLORS) != {label for label, _ in mixed[1]}
    entries = manifest(bert_bundle)["adapters"]
    assert [len(entries[name]["labels"]) for name in ("colors", "things")] == [3, 4]
    with pytest.raises(UsageError, match="labels of their own"):
        model.classify("the cat", adapters={"colors": 1.0, "things": 1.0})
    with pytest.raises(UsageError, match="no classification head"):
        model.classify("the cat", adapters={})
    call("verify", bert_bundle)


def test_merged_equals_beside_and_has_the_head_itself(bert_bundle: Path, bert_run: Path, tmp_path: Path) -> None:
    merged = load(export_bundle(tmp_path / "merged", bert_run, "--quant", "fp32", "--merge"))
    beside = load(bert_bundle)
    check(merged.classify(ASKED), [dict(scores) for scores in beside.classify(ASKED)])
    assert not merged.bundle.slots
    assert manifest(tmp_path / "merged")["task"] == "text-classification" != manifest(bert_bundle)["task"]
    assert "head.safetensors" in manifest(tmp_path / "merged")["files"]


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_integer_bundles_equal_torch_on_their_own_weights(bert_run: Path, tmp_path: Path, quant: str) -> None:
    found = manifest(export_bundle(tmp_path / quant, bert_run, "--quant", quant))["parity"]
    for report in (found["base"], found["adapters"]["colors"]):
        assert report["exact_activations"]["largest_logit_difference"] < 1e-3
        assert report["exact_activations"]["greedy_equal"] == report["prompts"]
        assert report["against_float"]["largest_logit_difference"] > 1e-3
    answers = load(tmp_path / quant).classify([line["text"] for line in texts(30, 96)])
    assert sum(scores[0][0] == line["label"] for scores, line in zip(answers, texts(30, 96), strict=True)) > 24


def test_full_tuning_from_a_config_alone_is_a_model_of_its_own(make_encoder: Callable[..., Path], colors: Path,
                                                               tmp_path: Path) -> None:
    base = make_encoder()
    (base / "model.safetensors").unlink()
    run = train_classifier(tmp_path / "run", base, colors, "--lr", 0.002, method="full")
    config = json.loads((run / "config.json").read_text())
    assert list(config["id2label"].values()) == COLORS
    bundle = export_bundle(tmp_path / "bundle", run, "--quant", "fp32")
    model = load(bundle)
    check(model.classify(ASKED), torch_scores(run, None, COLORS))
    assert model.task() == manifest(bundle)["task"] == "text-classification"
    again = train_classifier(tmp_path / "more", run, colors, "--max-steps", 20, "--lr", 0.01)
    beside = load(export_bundle(tmp_path / "beside", again, "--quant", "fp32"))  # a base with a head of its own
    check(beside.classify(ASKED, adapters={}), torch_scores(run, None, COLORS))
    assert differs(beside.classify(ASKED), torch_scores(run, None, COLORS))


def test_a_decoder_classifies_with_one_adapter_and_generates_without(base: Path, lora_run: Path, colors: Path,
                                                                     bundle: Path, tmp_path: Path) -> None:
    run = train_classifier(tmp_path / "labels", base, colors, "--max-steps", 30)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    before = load(bundle).generate("the red cat", max_tokens=12).tokens
    call("add", copy, run, "--name", "labels")
    model = load(copy)
    check(model.classify(ASKED, adapters={"labels": 1.0}), torch_scores(base, run, COLORS))
    assert model.generate("the red cat", max_tokens=12).tokens == before
    assert model.task() == "text-generation" != model.task({"labels": 1.0})
    with pytest.raises(UsageError, match="classifies"):
        model.generate("the red cat", adapters={"labels": 1.0})
    call("verify", copy)


def test_a_fully_tuned_decoder_classifies_and_generates_no_more(base: Path, colors: Path, tmp_path: Path) -> None:
    run = train_classifier(tmp_path / "run", base, colors, "--max-steps", 30, method="full")
    bundle = export_bundle(tmp_path / "bundle", run)  # int4
    assert manifest(bundle)["graph"]["builder"] == "mobius"
    assert manifest(bundle)["parity"]["base"]["exact_activations"]["largest_logit_difference"] < 1e-3
    with pytest.raises(UsageError, match="generates no text"):
        load(bundle).generate("the red cat")


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "builder", "extra"), [
    ("gpt2", "transformers", {"n_inner": 96}), ("opt", "transformers", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    ("gemma2", "mobius", {"head_dim": 16}), ("qwen3", "mobius", {"head_dim": 16, "tie_word_embeddings": False})])
def test_decoders_classify_beside_and_fully_tuned(make_base: Callable[..., Path], colors: Path, tmp_path: Path,
                                                  model_type: str, builder: str, extra: dict[str, Any]) -> None:
    base = make_base(model_type, **extra)
    run = train_classifier(tmp_path / "run", base, colors, "--max-steps", 20)
    beside = load(export_bundle(tmp_path / "beside", run, "--quant", "fp32"))
    check(beside.classify(ASKED), torch_scores(base, run, COLORS))
    full = train_classifier(tmp_path / "full", base, colors, "--max-steps", 10, method="full")
    tuned = load(export_bundle(tmp_path / "tuned", full, "--quant", "fp32"))
    check(tuned.classify(ASKED), torch_scores(full, None, COLORS))
    assert manifest(tmp_path / "tuned")["graph"]["builder"] == builder


def stranger(base: Path, out: Path, **options: Any) -> Path:
    """A classifier's LoRA that plain PEFT wrote, nothing in it zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3),
                               LoraConfig(task_type="SEQ_CLS", **options))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(out)
    return out


def test_a_strangers_classifier_goes_straight_in(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    base = make_encoder(auto="AutoModelForSequenceClassification", num_labels=3)  # its pooler is adapted too
    folder = stranger(base, tmp_path / "wild", r=4, target_modules=["query", "dense"], use_rslora=True)
    assert any("pooler.dense.lora_B" in name for name in TensorFile(folder / "adapter_model.safetensors"))
    bundle = export_bundle(tmp_path / "bundle", folder, "--base", base, "--quant", "fp32")
    wanted = torch_scores(base, folder, ["LABEL_0", "LABEL_1", "LABEL_2"])
    check(load(bundle).classify(ASKED), wanted)
    assert differs(load(bundle).classify(ASKED, adapters={}), wanted)


def test_a_head_that_nobody_saved_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stranger(bert, tmp_path / "wild", r=4, target_modules=["query"])  # bert's pooler was drawn at random
    call("export", folder, "--base", bert, "--device", "cpu-x86_64", "--out", tmp_path / "b", code=1)
    assert "bert.pooler.dense.weight" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_bare_encoder_with_old_names_is_the_same_base(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    base = make_encoder(auto="AutoModel")
    wanted = load(export_bundle(tmp_path / "new", base, "--quant", "fp32")).embed(ASKED)
    file = TensorFile(base / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in file
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
               np.array(file[name]) for name in file}
    write_tensors(base / "model.safetensors", renamed, {"format": "pt"})
    found = load(export_bundle(tmp_path / "old", base, "--quant", "fp32")).embed(ASKED)
    np.testing.assert_array_equal(found, wanted)


def test_embeddings_equal_torch_in_batches_and_alone(bert_bundle: Path, bert: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    with torch.no_grad():
        hidden = [model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0) for text in ASKED]
    wanted = np.stack([(row / row.norm()).numpy() for row in hidden])
    runner = load(bert_bundle)
    np.testing.assert_allclose(runner.embed(ASKED, adapters={}), wanted, atol=1e-5)
    np.testing.assert_allclose(runner.embed(ASKED[:1], adapters={}), wanted[:1], atol=1e-5)
    assert np.abs(runner.embed(ASKED) - wanted).max() > 1e-3
    assert runner.embed(ASKED).dtype == np.float32


@pytest.mark.parametrize("options", [["--quant", "fp32"], ["--quant", "fp32", "--merge"], ["--quant", "int8"]])
def test_a_strangers_embedding_adapter_goes_straight_in(bert: Path, tmp_path: Path, options: list[str]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    tokenizer, plain = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert, add_pooling_layer=False)
    torch.manual_seed(1)
    model = get_peft_model(plain, LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["query", "dense"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "wild")
    with torch.no_grad():
        rows = [model.eval()(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0)
                for text in ASKED]
    wanted = np.stack([(row / row.norm()).numpy() for row in rows])
    runner = load(export_bundle(tmp_path / "bundle", tmp_path / "wild", "--base", bert, *options))
    assert runner.task() == "feature-extraction"
    close = 0.05 if "int8" in options else 1e-5
    assert np.abs(runner.embed(ASKED) - wanted).max() < close
    if "--merge" not in options:
        assert np.abs(runner.embed(ASKED, adapters={}) - wanted).max() > close


def test_a_decoder_embeds_its_last_token(bundle: Path, base: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        rows = [model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1] for text in ASKED]
    np.testing.assert_allclose(load(bundle).embed(ASKED, adapters={}),
                               np.stack([(row / row.norm()).numpy() for row in rows]), atol=1e-5)


def test_the_command_line_prints_labels_and_embeddings(bert_bundle: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        call("run", bert_bundle, "--prompt", *arguments, code=code)
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    text = run("the green cat runs a house")
    assert text.split()[0] == "green"
    assert text.count("%") == 3
    said = json.loads(run("the green cat runs a house", "--json"))
    assert said["text"] == said["labels"][0]["label"] == "green"
    assert sum(item["score"] for item in said["labels"]) == pytest.approx(1)
    assert said["adapters"] == {"colors": 1.0}
    assert not said["truncated"]
    assert run("the cat", "--adapter", "none").startswith("embedding of 64 numbers")
    assert len(json.loads(run("the cat", "--adapter", "none", "--json"))["embedding"]) == 64
    assert "--temperature" in run("the cat", "--temperature", 1, code=2)
    call("run", bert_bundle, "--prompt", "the green cat " * 40)
    assert "the rest was cut off" in capsys.readouterr().err
    for command, *more in (["bench"], ["chat"], ["eval", "--data", lines(tmp_path / "t.jsonl", [{"text": "one two"}])]):
        call(command, bert_bundle, *more, code=2)
        assert "generates no text" in capsys.readouterr().err


def test_a_long_text_is_cut_and_that_is_said(bert_bundle: Path) -> None:
    model = load(bert_bundle)
    with pytest.warns(UserWarning, match="the rest was cut off"):
        model.classify("the green cat " * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.classify("the green cat")
        with pytest.raises(UsageError, match="generates no text"):
            model.generate("the green cat")


def test_the_run_and_the_bundle_agree_on_loss_and_accuracy(bert_bundle: Path, bert_run: Path, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "held.jsonl", texts(20, 96))
    found = []
    for subject in (bert_bundle, bert_run):
        call("eval", subject, "--data", data, "--json")
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-4)
    assert found[0]["accuracy"] == found[1]["accuracy"] > 0.8
    call("eval", bert_run, "--data", data)
    assert "accuracy" in capsys.readouterr().out
    other = lines(tmp_path / "other.jsonl", [{"text": "the cat", "label": "violet"}])
    for subject in (bert_bundle, bert_run):
        call("eval", subject, "--data", other, code=1)
        assert "violet" in capsys.readouterr().err


def test_broken_heads_are_refused_by_name(bert_bundle: Path, tmp_path: Path) -> None:
    model, file = load(bert_bundle), TensorFile(bert_bundle / "adapters" / "colors.safetensors")
    tensors = {name: np.array(file[name]) for name in file}
    broken = {"infinite": {"head.1.bias": np.full(3, np.inf, np.float32)},
              "declared": {"head.0.weight": np.zeros((64, 9), np.float32)},
              "labels": {"head.1.weight": np.zeros((5, 64), np.float32), "head.1.bias": np.zeros(5, np.float32)}}
    for word, change in broken.items():
        path = tmp_path / f"{word}.safetensors"
        write_tensors(path, {**tensors, **change}, file.metadata)
        with pytest.raises(EdgeftError, match=word):  # numbers at loading, what the graph must fit at the request
            model.load_adapter(word, path)
            model.classify("the cat", adapters={word: 1.0})


def test_a_wrong_head_fails_verification(bert_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Head.tensors
    monkeypatch.setattr(Head, "tensors", lambda self: {name: array * 1.01 for name, array in right(self).items()})
    call("export", bert_run, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b", code=1)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_does_nothing_fails(bert_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    idle = tmp_path / "idle"
    shutil.copytree(bert_run, idle)
    file = TensorFile(idle / "adapter_model.safetensors")
    write_tensors(idle / "adapter_model.safetensors",
                  {name: np.array(file[name]) * ("lora_B" not in name) for name in file})
    call("export", idle, "--device", "cpu-x86_64", "--quant", "fp32", "--out", tmp_path / "b", code=1)
    assert "changes no logit" in capsys.readouterr().err


def test_a_classifier_travels_apart_from_its_base(bert_bundle: Path, tmp_path: Path) -> None:
    call("pack", bert_bundle, "--without-adapters", "--out", tmp_path / "base.edgeft")
    call("pack", bert_bundle, "--adapter", "things", "--out", tmp_path / "things.edgeft")
    call("install", tmp_path / "base.edgeft", "--to", tmp_path / "there")
    call("install", tmp_path / "things.edgeft", "--to", tmp_path / "there")
    assert list(manifest(tmp_path / "there")["adapters"]) == ["things"]
    found, wanted = (load(folder).classify(ASKED, adapters={"things": 1.0})
                     for folder in (tmp_path / "there", bert_bundle))
    assert found == wanted
    assert found != load(bert_bundle).classify(ASKED)
