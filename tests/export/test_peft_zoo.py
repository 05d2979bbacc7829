"""Everyone's adapters: each PEFT type and LoRA field gives a bundle that equals PEFT, or the refusal of the table."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeft import plugins
from edgeft.contract.errors import EdgeftError
from edgeft.contract.peft_types import PEFT_TYPES, REFUSED_FIELDS
from edgeft.run import load
from edgeft.run.model import Model
from edgeft.run.probe import answer, contract_logits
from tests.conftest import edgeft
from tests.export.peft_variants import ARCHITECTURES, VARIANTS, Variant, build

PROMPTS = ["the red cat runs a tree and", "one two"]  # unequal lengths: one row is padded
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {}, "gpt2": {"n_inner": 96},
    "qwen2": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 1}}
CASES = [(variant, architecture) for variant in VARIANTS for architecture in variant.on]


@pytest.fixture(scope="module")
def bases(make_base: Callable[..., Path]) -> dict[str, Path]:
    return {name: make_base(name, **SHAPES[name]) for name in ARCHITECTURES}


@pytest.fixture(scope="module", autouse=True)
def quick_exports() -> Iterator[None]:
    """The exporter's own verification in this process; gpt2's trace, the same each time, is taken once."""
    from edgeft.export import parity, trace, verify

    right, kept, prompts = trace.trace, {}, parity._prompts

    def cached(model: Any) -> ir.Model:
        key = model.lm_head.weight is model.get_input_embeddings().weight
        if key not in kept:
            kept[key] = ir.serde.serialize_model(right(model))
        return ir.serde.deserialize_model(kept[key])

    def ask(bundle: Path, subjects: dict[str, Any], new: int) -> tuple[dict[str, verify.Answers], float]:
        model, found = Model(bundle, several=True), {}
        for name, (cases, adapters) in subjects.items():
            said = [answer(model, case.ids, case.forced, new, adapters) for case in cases]
            found[name] = verify.Answers([item["tokens"].tolist() for item in said], [item["logits"] for item in said],
                                         [contract_logits(model, [*case.ids, *case.forced], adapters)
                                          for case in cases])
        return found, 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace", cached)
        patch.setattr(verify, "ask_bundle", ask)
        patch.setattr(parity, "MANY", 0)  # short answers, as for a large model
        patch.setattr(parity, "_prompts", lambda job, tokenizer, count, new: prompts(job, tokenizer, 2, new))
        yield


@pytest.fixture(scope="module")
def bundles(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bare bases, to which adapters are added."""
    from edgeft.export.bundle import export

    folder, host = tmp_path_factory.mktemp("bundles"), plugins.host()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, base in bases.items():
            export(base, host.device("cpu-x86_64"), folder / name, host=host, quant="fp32")
    return {name: folder / name for name in bases}


@pytest.mark.parametrize(("variant", "architecture"), CASES, ids=[f"{item.name}-{name}" for item, name in CASES])
def test_the_bundle_equals_peft_or_is_refused_by_name(variant: Variant, architecture: str, bases: dict[str, Path],
                                                      bundles: dict[str, Path], tmp_path: Path) -> None:
    if variant.kind == "ADAMSS":
        pytest.importorskip("sklearn")
    fate = PEFT_TYPES[variant.kind]
    base = bases[architecture]
    folder = build(variant, architecture, base, tmp_path / "wild")
    expected = variant.expected(architecture)
    bundle = tmp_path / "bundle"
    beside = shutil.copytree(bundles[architecture], tmp_path / "beside")
    if expected == "slots":
        bundle, report = beside, in_process("add", beside, folder, base)
    else:
        message = refusal("add", beside, folder, base)
        assert "--merge" in message or expected == "refused"
        if expected == "refused":
            for text in (message, refusal("export", bundle, folder, base)):
                assert (variant.word or variant.kind) in text
                assert fate.merged or not fate.reason or fate.reason in text
            assert not bundle.exists()
            return
        report = in_process("export", bundle, folder, base)
    assert report["largest_logit_difference"] < 1e-3
    assert report["greedy_equal"] == report["prompts"]
    assert_equals_peft(bundle, base, folder, {"wild": 1.0} if expected == "slots" else {})


def in_process(verb: str, bundle: Path, folder: Path, base: Path) -> dict[str, Any]:
    """`add BUNDLE FOLDER` or `export FOLDER --merge`, and the parity report."""
    from edgeft.export.bundle import add, export

    host = plugins.host()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if verb == "add":
            return add(bundle, folder, "wild", host=host, base=str(base))
        manifest = export(folder, host.device("cpu-x86_64"), bundle, host=host, merge=True, base=str(base),
                          quant="fp32")
        return dict(manifest["parity"]["base"])


def refusal(verb: str, bundle: Path, folder: Path, base: Path) -> str:
    with pytest.raises(EdgeftError) as caught:
        in_process(verb, bundle, folder, base)
    return str(caught.value)


def assert_equals_peft(bundle: Path, base: Path, folder: Path, adapters: dict[str, float]) -> None:
    """A second look at a padded batch of two: last logits and greedy tokens, against PEFT unmerged on each alone."""
    model = load(bundle)
    ids = [model.encode(prompt, adapters, raw=True) for prompt in PROMPTS]
    assert len(ids[0]) != len(ids[1])
    lanes = model.lanes([adapters, adapters], 64)
    wanted, tokens = zip(*torch_answers(base, folder, ids), strict=True)
    np.testing.assert_allclose(lanes.prefill(ids), np.stack(wanted), atol=1e-3)
    answers = model.batch(PROMPTS, adapters=[adapters, adapters], max_tokens=6, raw=True)
    assert [answer.tokens for answer in answers] == list(tokens)
    untouched = torch_answers(base, None, ids)
    assert max(np.abs(with_it - without).max() for with_it, (without, _) in zip(wanted, untouched, strict=True)) > 1e-2


def torch_answers(base: Path, folder: Path | None, prompts: Sequence[list[int]]) -> list[tuple[Any, list[int]]]:
    """Last logits and six greedy tokens of each prompt, by PEFT on the base, nothing merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
    answers = []
    kind = getattr(getattr(model, "active_peft_config", None), "peft_type", "")
    task = {"task_ids": torch.tensor([0])} if kind == "MULTITASK_PROMPT_TUNING" else {}
    with torch.no_grad():
        for ids in prompts:
            logits = first = model(input_ids=torch.tensor([ids]), **task).logits[0, -1]
            tokens: list[int] = []
            while len(tokens) < 6:
                tokens.append(int(logits.argmax()))
                if tokens[-1] == 2:
                    break
                logits = model(input_ids=torch.tensor([ids + tokens]), **task).logits[0, -1]
            answers.append((first.numpy(), tokens))
    return answers


def test_the_table_is_of_all_peft_types_and_each_is_tried() -> None:
    from peft.utils.peft_types import PeftType

    assert set(PEFT_TYPES) == {kind.value for kind in PeftType}
    assert {variant.kind for variant in VARIANTS} == set(PEFT_TYPES)


def test_every_lora_field_is_decided() -> None:
    """A new field of PEFT's LoraConfig fails here until someone says what becomes of it."""
    import dataclasses

    from edgeft_plugins.lora import _NO_EFFECT, Lora, LoraOptions
    from peft import LoraConfig

    from edgeft.contract.method import PEFT_HOUSEKEEPING

    honoured = set(LoraOptions.__dataclass_fields__) | set(_NO_EFFECT) | PEFT_HOUSEKEEPING
    merged_by_peft = {"bias", "lora_bias", "trainable_token_indices", "target_parameters", "ensure_weight_tying",
                      "velora_config", "monteclora_config", "kasa_config", "use_bdlora"}
    refused = set(REFUSED_FIELDS["LORA"])
    assert {item.name for item in dataclasses.fields(LoraConfig)} == \
        (honoured | merged_by_peft | refused) - {"init"}
    assert not merged_by_peft & honoured
    tried = {name for variant in VARIANTS if variant.kind == "LORA" for name in {**variant.options, **variant.edit}}
    assert merged_by_peft | refused <= tried
    for name in merged_by_peft | refused:  # set, they are none of the plugin's business
        with pytest.raises(EdgeftError, match=name):
            Lora().read_peft({"r": 4, name: "all" if name == "bias" else [1]})


def test_the_table_is_printed() -> None:
    text = edgeft("methods", "--peft").stdout
    for kind, fate in PEFT_TYPES.items():
        assert any(line.split()[0] == kind and str(fate) in line for line in text.splitlines())
