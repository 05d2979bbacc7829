"""Compare a bundle with torch: the shipped runner, in a process of its own, against the oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeft.contract.bundle import MANIFEST, describe_file, write_manifest
from edgeft.contract.errors import EdgeftError, Faults
from edgeft.contract.files import copy_file, scratch
from edgeft.contract.tensors import TensorFile

from .oracle import Oracle

NO_EFFECT = 1e-5  # largest change of a logit below which an adapter does nothing


@dataclass(frozen=True)
class Bar:
    """What a bundle must reach against torch computing on the same weights."""

    logits: float  # largest difference
    kl: float  # mean nats per position
    agreement: float  # share of positions with the same most likely token
    greedy: bool  # whether every greedy answer must be equal


EXACT = Bar(1e-3, 1e-6, 1.0, True)
# As shipped: fp16 rounds every product; on integer grids the device rounds activations to int8 too, so near-ties
# flip. That the codes themselves are right is proven apart, by the same graph with exact activations (EXACT).
SHIPPED = {"fp32": EXACT, "fp16": Bar(0.5, 1e-3, 0.97, False),
           "int8": Bar(float("inf"), 0.05, 0.85, False), "int4": Bar(float("inf"), 0.05, 0.85, False)}


@dataclass
class Case:
    """One prompt for one subject: what torch says in float, and on the bundle's own weights."""

    ids: list[int]
    forced: list[int]  # torch's greedy answer in float
    float_logits: np.ndarray[Any, Any]  # [prompt + forced, vocab]
    tokens: list[int]  # torch's greedy answer on the bundle's own weights
    logits: np.ndarray[Any, Any]  # the same as float_logits, on the bundle's own weights


def ask_torch(oracle: Oracle, prompts: Sequence[list[int]], new: int) -> list[Case]:
    """Greedy answers and logits of every prompt, in float."""
    cases = []
    for ids in prompts:
        forced = oracle.greedy(ids, new)
        logits = oracle.logits([*ids, *forced])
        cases.append(Case(list(ids), forced, logits, forced, logits))
    return cases


def ask_torch_on_grid(oracle: Oracle, cases: Sequence[Case], new: int) -> None:
    """Replace what is expected by what the same model says on the device's weights."""
    for case in cases:
        case.tokens = oracle.greedy(case.ids, new)
        case.logits = oracle.logits([*case.ids, *case.forced])


@dataclass
class Answers:
    """What a bundle said to the cases of one subject."""

    tokens: list[list[int]]
    logits: list[np.ndarray[Any, Any]]
    contract: list[np.ndarray[Any, Any]]  # the same by the contract's graph


def ask_bundle(bundle: Path, subjects: dict[str, tuple[list[Case], dict[str, float]]],
               new: int) -> tuple[dict[str, Answers], float]:
    """Run the shipped runner over every subject's cases; also its peak memory in MiB."""
    items = [{"ids": case.ids, "forced": case.forced, "new": new, "adapters": adapters}
             for cases, adapters in subjects.values() for case in cases]
    found = probe(bundle, items)
    answers, index = {}, 0
    for name, (cases, _) in subjects.items():
        span = range(index, index + len(cases))
        answers[name] = Answers([found[f"{item}.tokens"].tolist() for item in span],
                                *([np.array(found[f"{item}.{part}"]) for item in span]
                                  for part in ("logits", "contract")))
        index += len(cases)
    return answers, float(found.metadata["peak_mib"])


def probe(bundle: Path, items: Sequence[dict[str, Any]]) -> TensorFile:
    """What the shipped runner answers, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "answers.safetensors")
        job.write_text(json.dumps({"bundle": str(bundle), "items": items}))
        done = subprocess.run([sys.executable, "-m", "edgeft.run.probe", str(job), str(out)], capture_output=True,
                              text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=False)
        if done.returncode:
            said = done.stderr.rpartition("Error: ")[2].strip() or "it was killed"  # a whole message has several lines
            raise EdgeftError(f"The runner cannot run the bundle: {said}")
        return TensorFile(out)  # mapped: it outlives the folder


def compare(cases: Sequence[Case], answers: Answers) -> dict[str, Any]:
    """The report of one subject: logits, distributions and tokens against torch on the same weights."""
    wanted = [case.logits for case in cases]
    runner, contract = distance(wanted, answers.logits), distance(wanted, answers.contract)
    return {"prompts": len(cases), "tokens": sum(len(case.forced) for case in cases),
            "largest_logit_difference": max(runner["largest_logit_difference"], contract["largest_logit_difference"]),
            "agreement": min(runner["agreement"], contract["agreement"]), "kl": max(runner["kl"], contract["kl"]),
            "greedy_equal": sum(tokens == case.tokens for tokens, case in zip(answers.tokens, cases, strict=True))}


def compare_with_float(cases: Sequence[Case], answers: Answers) -> dict[str, float]:
    """What the device's weights cost: the distance from torch in float."""
    return distance([case.float_logits for case in cases], answers.logits)


@contextmanager
def exact_copy(bundle: Path) -> Iterator[Path]:
    """The bundle with its integer products computed on unrounded activations, as the oracle computes them."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    with scratch(bundle / "exact") as folder:
        for name in manifest["files"]:
            if not name.endswith(".onnx"):
                copy_file(bundle / name, folder / name)
                continue
            model = ir.load(bundle / name)
            for node in model.graph:
                if "accuracy_level" in node.attributes:
                    node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
            ir.save(model, folder / name)
            manifest["files"][name] = describe_file(folder / name)
        write_manifest(folder, manifest)
        yield folder


def distance(wanted: Sequence[np.ndarray[Any, Any]], found: Sequence[np.ndarray[Any, Any]]) -> dict[str, float]:
    """Between two models' logits to the same tokens: largest difference, agreement of the likeliest token, mean KL."""
    differences, agreements, divergences = [], [], []
    for left, right in zip(wanted, found, strict=True):
        differences.append(float(np.abs(left - right).max()))
        agreements.append(left.argmax(-1) == right.argmax(-1))
        p, q = _log_softmax(left), _log_softmax(right)
        divergences.append((np.exp(p) * (p - q)).sum(-1))
    return {"largest_logit_difference": max(differences),
            "agreement": float(np.concatenate(agreements).mean()),
            "kl": float(np.concatenate(divergences).mean())}


def _log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def effect(with_adapter: Sequence[np.ndarray[Any, Any]], base: Sequence[np.ndarray[Any, Any]]) -> float:
    """Largest change of a logit that an adapter makes on the prompts both saw."""
    return max(float(np.abs(left[:size] - right[:size]).max())
               for left, right in zip(with_adapter, base, strict=True)
               for size in [min(len(left), len(right))])


def judge(subject: str, report: dict[str, Any], bar: Bar, faults: Faults) -> None:
    """Note all that is below the bar."""
    if not report["largest_logit_difference"] <= bar.logits:
        faults.add(f"{subject}: largest logit difference", declared=f"at most {bar.logits:g}",
                   found=f"{report['largest_logit_difference']:.2e}")
    if not report["kl"] <= bar.kl:
        faults.add(f"{subject}: KL from torch", declared=f"at most {bar.kl:g}", found=f"{report['kl']:.2e}")
    if report["agreement"] < bar.agreement:
        faults.add(f"{subject}: agreement with torch", declared=f"at least {bar.agreement:.0%}",
                   found=f"{report['agreement']:.1%}")
    if bar.greedy and report["greedy_equal"] < report["prompts"]:
        faults.add(f"{subject}: greedy answers equal to torch's", declared=report["prompts"],
                   found=report["greedy_equal"])


def judge_effect(name: str, report: dict[str, Any], faults: Faults) -> None:
    """An adapter that changes nothing, in torch or in the bundle, is a bug that must not pass."""
    if report["effect_in_torch"] < NO_EFFECT:
        faults.add(f"{name}: changes no logit by more than {report['effect_in_torch']:.0e} in torch itself: it was "
                   "never trained, or its modules match nothing")
    elif report["effect"] < max(NO_EFFECT, 0.1 * report["effect_in_torch"]):
        faults.add(f"{name}: changes logits by", declared=f"{report['effect_in_torch']:.2e} in torch",
                   found=f"{report['effect']:.2e} in the bundle")
