"""`--as-adapter`: a tuned model, or any PEFT folder that merges, as a low-rank adapter, its loss of fidelity told."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.contract.tensors import TensorFile
from edgeft.export.svd import factorize
from edgeft.run import load
from tests.conftest import edgeft, export_bundle, train_run
from tests.export.peft_variants import VARIANTS, build
from tests.export.test_parity import PROMPTS, torch_greedy


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    return train_run(tmp_path_factory.mktemp("runs") / "whole", base, data, "--epochs", 6, "--lr", 0.003,
                     method="full")


def tuned_copy(base: Path, out: Path, rank: int, embeddings: bool = False, seed: int = 0) -> Path:
    """A model folder whose linear layers differ from the base's by a change of a known rank."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    shutil.copytree(base, out)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (embeddings or not any(word in name for word in ("embed", "wte", "wpe"))):
                parameter += 0.1 * torch.randn(len(parameter), rank) @ torch.randn(rank, parameter.shape[1])
    model.save_pretrained(out)
    return out


def report(bundle: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text())["parity"]["adapters"][name])


def refused(code: int, out: Path, *arguments: object) -> bool:
    """Whether export ends with this code."""
    from edgeft.cli import main

    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")
        main(["export", *map(str, arguments), "--device", "cpu-x86_64", "--out", str(out)])
    return ended.value.code == code


def test_a_fully_tuned_run_stands_beside_its_base(base: Path, full_run: Path, tmp_path: Path) -> None:
    found = {}
    for rank in (2, 32):
        bundle = export_bundle(tmp_path / f"r{rank}", full_run, "--quant", "fp32", "--as-adapter", "--rank", rank)
        whole = report(bundle, "whole")
        assert whole["largest_logit_difference"] < 1e-3  # the bundle is torch's base with this very adapter
        assert whole["effect"] > 0.1
        found[rank] = whole["fidelity"]
        assert found[rank]["rank"] == rank
        assert 0 < found[rank]["worst_kept"] <= found[rank]["kept"] <= 1
        assert found[rank]["kept_of_all"] < found[rank]["kept"]
        assert "model.embed_tokens.weight" in found[rank]["not_carried"]
        assert "model.norm.weight" in found[rank]["not_carried"]
    assert found[2]["kept"] < found[32]["kept"]
    assert found[2]["kl"] > found[32]["kl"]
    model = load(bundle)
    assert model.generate(PROMPTS[0] + "\n", adapters={}, max_tokens=24).tokens == \
        torch_greedy(base, None, PROMPTS[0] + "\n")
    assert json.loads((bundle / "bundle.json").read_text())["provenance"]["source"] == str(full_run)


@pytest.mark.parametrize("model_type", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_change_of_that_rank_is_kept_whole(make_base: Callable[..., Path], tmp_path: Path, model_type: str) -> None:
    base = make_base(model_type, **({"n_inner": 96} if model_type == "gpt2" else {}))
    tuned = tuned_copy(base, tmp_path / "tuned", 3)
    bundle = export_bundle(tmp_path / "exact", tuned, "--base", base, "--quant", "fp32", "--as-adapter", "--rank", 3)
    exact = report(bundle, "tuned")["fidelity"]
    assert exact["kept"] > 1 - 1e-6
    assert exact["largest_logit_difference"] < 1e-3
    assert exact["agreement"] == 1
    assert exact["not_carried"] == []
    assert load(bundle).generate(PROMPTS[0], max_tokens=24).tokens == torch_greedy(tuned, None, PROMPTS[0])
    lossy = report(export_bundle(tmp_path / "lossy", tuned, "--base", base, "--quant", "fp32", "--as-adapter",
                                 "--rank", 1), "tuned")["fidelity"]
    assert lossy["kept"] < 0.9
    assert lossy["largest_logit_difference"] > 1e-2


def test_the_rank_is_16_unless_told_and_the_loss_is_printed(base: Path, full_run: Path, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export_bundle(tmp_path / "b", full_run, "--as-adapter", "--name", "small")  # int4
    assert report(bundle, "small")["fidelity"]["rank"] == 16
    shown = capsys.readouterr().out
    assert "compressed to rank 16: keeps" in shown
    assert "against the original in torch" in shown
    assert "not carried" in shown
    assert {TensorFile(bundle / "adapters/small.safetensors").shape(name)[1]
            for name in TensorFile(bundle / "adapters/small.safetensors") if name.endswith(".A")} == {16}


def test_a_peft_type_of_full_rank_can_be_added_compressed(base: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    variant = next(item for item in VARIANTS if item.name == "boft")
    folder = build(variant, "llama", base, tmp_path / "turned")
    bundle = export_bundle(tmp_path / "b", base, "--quant", "fp32")
    assert refused(1, tmp_path / "no", folder, "--base", base, "--quant", "fp32")
    assert "--as-adapter" in capsys.readouterr().err
    found = json.loads(edgeft("add", bundle, folder, "--name", "turned", "--base", base, "--as-adapter", "--rank", 8,
                              "--json").stdout)
    assert found["largest_logit_difference"] < 1e-3
    assert 0 < found["fidelity"]["kept"] < 1


def test_misuse_is_told(base: Path, full_run: Path, make_base: Callable[..., Path], tmp_path: Path,
                        capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tuned_copy(base, tmp_path / "tuned", 2)
    norms = build(next(item for item in VARIANTS if item.name == "ln-tuning"), "llama", base, tmp_path / "norms")
    deeper = make_base(num_hidden_layers=3)
    for code, words, arguments in [
            (2, "--rank is for --as-adapter", [full_run, "--rank", 4]),
            (2, "choose one", [full_run, "--as-adapter", "--merge"]),
            (2, "--base", [tuned, "--as-adapter"]),
            (1, "is no tuning of", [tuned, "--as-adapter", "--base", deeper]),
            (1, "nothing that an adapter could carry", [base, "--as-adapter", "--base", base]),
            (1, "input_layernorm.weight", [norms, "--as-adapter", "--base", base]),
            (1, "fingerprint", [full_run, "--as-adapter", "--base", make_base(seed=7)])]:
        assert refused(code, tmp_path / "no", *arguments)
        assert words in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_training_from_scratch_is_a_change_of_no_base(make_base: Callable[..., Path], data: Path,
                                                      tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = make_base(weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train_run(tmp_path / "run", empty, data, "--max-steps", 2, method="full")
    assert refused(2, tmp_path / "no", run, "--as-adapter")
    assert "random weights" in capsys.readouterr().err


def test_factors_are_the_best_of_their_rank() -> None:
    random = np.random.default_rng(0)
    change = (random.standard_normal((12, 4)) @ random.standard_normal((4, 20))).astype(np.float32)
    whole = factorize(change, noise=1e-5)
    assert whole.rank == 4
    np.testing.assert_allclose((whole.a @ whole.b).T, change, atol=1e-5)
    half = factorize(change, 2)
    assert half.rank == 2
    assert half.kept < half.squares
    np.testing.assert_allclose(np.square(change - (half.a @ half.b).T).sum(), half.squares - half.kept, rtol=1e-4)
