"""The kit has teeth: each deliberate fault breaks the rule about it, and no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeft.contract import Lowered, Method
from edgeft.testing import RULES, Case, MethodKit, RuleBroken, RuleSkipped, declarations
from edgeft.testing.kit import attaches_to_a_base
from edgeft.testing.models import TorchBase, tiny_base, token_ids
from edgeft.testing.reference import lowered_logits
from tests import kit_subjects
from tests.kit_subjects import RIGHT, WRONG, Gain, Prompt
from tests.kit_wrong_loras import LowerForgetsTheScaling


def case_of(kind: type[Method[Any]]) -> Case:
    return Case(kind(), kind.Options(), "qwen2")


def results(kind: type[Method[Any]]) -> dict[str, str]:
    """Every rule: "ok", "skipped" or what broke it. Each asks a method object of its own."""
    declared: list[tuple[Callable[[Any], None], Any]] = [
        (declarations.declares_what_the_host_asks, kind()), (declarations.loads_without_torch, kind()),
        (declarations.options_leave_shared_flags_alone, kind.Options),
        (declarations.options_survive_flags_toml_and_json, kind.Options()), (attaches_to_a_base, [case_of(kind)])]
    return {rule.__name__: outcome(rule, subject)
            for rule, subject in [*declared, *((rule, case_of(kind)) for rule in RULES.values())]}


def outcome(rule: Callable[[Any], None], subject: Any) -> str:
    try:
        rule(subject)
    except RuleSkipped:
        return "skipped"
    except RuleBroken as broken:
        return str(broken)
    except Exception as error:  # a plugin's own
        return f"{type(error).__name__}: {error}"
    return "ok"


def broken(found: dict[str, str]) -> set[str]:
    return {name for name, text in found.items() if text not in ("ok", "skipped")}


def describe(found: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in found.items())


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_a_right_method_breaks_no_rule(kind: type[Method[Any]]) -> None:
    found = results(kind)
    assert broken(found) == set(), describe(found)


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_fault_breaks_the_rule_about_it_and_no_other(kind: type[Method[Any]]) -> None:
    found = results(kind)
    assert broken(found) == WRONG[kind], describe(found)


def test_every_rule_is_broken_by_some_method() -> None:
    assert set().union(*WRONG.values()) == set(results(Gain))


def test_every_rule_is_a_test_of_the_kit() -> None:
    assert {name.removeprefix("test_") for name in dir(MethodKit) if name.startswith("test_")} == set(results(Gain))


def test_what_a_method_cannot_do_is_skipped_with_its_reason() -> None:
    found = results(Prompt)
    assert {name for name, text in found.items() if text == "skipped"} == {"merged_equals_unmerged",
                                                                           "fresh_adapter_equals_base"}
    case = case_of(Prompt)
    with pytest.raises(RuleSkipped, match="cannot merge: merging cannot run the base"):
        RULES["merged_equals_unmerged"](case)
    with pytest.raises(RuleSkipped, match="virtual tokens start at random"):
        RULES["fresh_adapter_equals_base"](case)


def test_a_plugin_that_imports_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(kit_subjects.__file__).read_text(encoding="utf-8")
    heavy = source.replace("from typing import Any", "from typing import Any\nimport torch")
    (tmp_path / "heavy_plugin.py").write_text(heavy)
    monkeypatch.syspath_prepend(tmp_path)
    import heavy_plugin  # type: ignore[import-not-found]

    with pytest.raises(RuleBroken, match="blocked: torch"):
        declarations.loads_without_torch(heavy_plugin.Gain())


@pytest.mark.parametrize("tolerances", [
    {"lower": (1e-4, "")}, {"lower": (0.0, "none")}, {"lower": ("much", "a word")}, {"lowered": (1e-4, "a reason")},
    {"lower": 1e-4}])
def test_tolerances_need_a_known_rule_a_number_and_a_reason(tolerances: dict[str, Any]) -> None:
    assert len(declarations.tolerance_faults(tolerances)) == 1
    assert declarations.tolerance_faults({"lower": (1e-4, "a sum of a thousand terms"),
                                          "fresh": (float("inf"), "random")}) == []


def test_a_methods_tolerance_counts() -> None:
    class Coarse(Gain):
        tolerances = {"fresh": (1e-5, "none"), "merge": (1.0, "for this test")}

    case = case_of(Coarse)
    assert (case.tolerance("merge"), case.tolerance("lower")) == (1.0, 1e-5)
    with pytest.raises(RuleBroken, match="is needed to tell"):  # ten times 1.0 is more than it learns
        RULES["trained_adapter_differs_from_base"](case)


def test_the_reference_is_the_contracts_arithmetic() -> None:
    """Slots written out by hand on one layer: (W x + b + x A B) * s, the bias inside."""
    base = tiny_base("qwen2")
    view = TorchBase(base)
    module = "model.layers.1.self_attn.q_proj"
    width, out = view.linears()[module]
    generator = torch.Generator().manual_seed(1)
    a, b, s = (torch.randn(shape, generator=generator) for shape in ((width, 3), (3, out), (out,)))
    lowered = Lowered(lowrank={module: (a.numpy(), b.numpy())}, scale={module: s.numpy()})
    found = lowered_logits(base, lowered, token_ids())
    plain = lowered_logits(base, Lowered(), token_ids())
    layer: Any = base.get_submodule(module)
    with torch.no_grad():
        layer.weight.copy_((layer.weight + (a @ b).T) * s[:, None])
        layer.bias.mul_(s)
    by_hand = lowered_logits(base, Lowered(), token_ids())
    assert float((found - by_hand).abs().max()) < 1e-5
    assert float((found - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("base", ["llama", "qwen2", "gpt2"])
def test_a_prefix_of_real_tokens_is_the_longer_prompt(base: str) -> None:
    """Keys and values of the first tokens in the cache, the rest after them: as if all were fed."""
    model = tiny_base(base)
    ids = token_ids()[:1]
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits[:, 4:]
        embeddings = model.get_input_embeddings()(ids[0, :4]).numpy()
    lowered = Lowered(prefix=TorchBase(model).keys_values(embeddings))
    assert float((lowered_logits(model, lowered, ids[:, 4:]) - wanted).abs().max()) < 1e-5
    assert float((lowered_logits(model, Lowered(), ids[:, 4:]) - wanted).abs().max()) > 1e-2


STRANGERS_TESTS = """
from edgeft.testing import MethodKit
from tests.kit_subjects import Gain
from tests.kit_wrong_loras import LowerForgetsTheScaling

class TestRight(MethodKit):
    method = Gain()

class TestWrong(MethodKit):
    method = LowerForgetsTheScaling()
    bases = ("llama",)
"""


def test_a_test_file_of_three_lines_per_method(tmp_path: Path) -> None:
    """Under pytest each rule is a test of its name; a broken one is a message without traceback."""
    (tmp_path / "test_stranger.py").write_text(STRANGERS_TESTS)
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-W", "error", "-c",
                           os.devnull, f"--rootdir={tmp_path}", str(tmp_path)], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parents[1])

    def found(outcome: str, kit: str) -> set[str]:
        return set(re.findall(rf"^{outcome} .*::{kit}::test_(\w+)", done.stdout, re.MULTILINE))

    assert found("FAILED", "TestWrong") == WRONG[LowerForgetsTheScaling], done.stdout
    assert found("FAILED", "TestRight") == set()
    assert found("PASSED", "TestRight") == set(results(Gain)), done.stdout
    assert "lower() (lowrank) is not what was trained" in done.stdout
    assert "Traceback" not in done.stdout
    assert "rules.py" not in done.stdout
