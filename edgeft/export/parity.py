"""The proof in a bundle: its base and its adapter give torch's answers, and the adapter changes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.contract.errors import Faults

from . import verify
from .oracle import Oracle
from .resolve import Job

# For artifacts that do not bring prompts of their own
SAMPLES = ("Once upon a time, in a small town,", "The most important thing to know about", "Q: What is it?\nA:",
           '{"name": "', "She looked at the", "1, 2, 3,")
MANY = 50_000_000  # parameters above which fewer and shorter answers are compared
LONGEST = 64  # tokens of a prompt


def prove(job: Job, modules: Sequence[str], stage: Path, tokenizer: Any) -> tuple[dict[str, Any], float]:
    """Torch and the bundle on the same prompts: the report, and the runner's peak memory in MiB.

    `modules` are the base's linear layers. EdgeftError lists all that is below the bar.
    """
    count, new = (3, 16) if job.base.weights.parameters > MANY else (6, 32)
    prompts = _prompts(job, tokenizer, count, new)
    base_cases, tuned_cases = _ask_torch(job, modules, prompts, new)
    subjects: dict[str, tuple[list[verify.Case], dict[str, float]]]
    if job.beside:
        subjects = {"base": (base_cases, {}), job.name: (tuned_cases, {job.name: 1.0})}
    else:
        subjects = {"base": (tuned_cases or base_cases, {})}
    answers, peak = verify.ask_bundle(stage, subjects, new)
    exact: dict[str, verify.Answers] = {}
    exactly = job.quant.bits and job.standard  # as shipped
    if job.quant.bits and not exactly:
        with verify.exact_copy(stage) as copy:
            exact, _ = verify.ask_bundle(copy, subjects, new)
    faults = Faults("The bundle does not answer as torch does, so it was not written")
    reports = {}
    for subject, (cases, _) in subjects.items():
        reports[subject] = report = verify.compare(cases, answers[subject])
        verify.judge(subject, report, verify.EXACT if exactly else verify.SHIPPED[job.quant.kind], faults)
        if job.quant.kind != "fp32":
            report["against_float"] = verify.compare_with_float(cases, answers[subject])
        if exact:
            report["exact_activations"] = verify.compare(cases, exact[subject])
            verify.judge(f"{subject}, exact activations", report["exact_activations"], verify.EXACT, faults)
    if job.learned is not None:
        report = reports[job.name or "base"]
        before = [case.float_logits for case in base_cases]
        report["effect_in_torch"] = verify.effect([case.float_logits for case in tuned_cases], before)
        report["effect"] = verify.effect(answers[job.name or "base"].logits,
                                         answers["base"].logits if job.beside else before)
        verify.judge_effect(job.name or "the merged model", report, faults)
    if job.compression is not None:
        reports[job.name]["fidelity"] = job.compression.fidelity(job.base, tuned_cases, answers[job.name])
    faults.raise_if_any("If the adapter belongs to this base, this is a bug in edgeft: please report it.")
    replay = [{"ids": case.ids, "adapters": used, "tokens": tokens}
              for name, (cases, used) in subjects.items()
              for case, tokens in zip(cases, answers[name].tokens, strict=True)]
    return {"against": "torch" if job.quant.kind == "fp32" else f"torch on the same {job.quant.kind} weights",
            "base": reports["base"], "adapters": {job.name: reports[job.name]} if job.beside else {},
            "replay": replay}, peak


def _ask_torch(job: Job, modules: Sequence[str], prompts: Sequence[list[int]],
               new: int) -> tuple[list[verify.Case], list[verify.Case]]:
    """Cases of the base and of what was learned, with their logits on the device's weights."""
    oracle = Oracle(job.base.load(), job.base.eos)
    base_cases = verify.ask_torch(oracle, prompts, new)
    tuned_cases: list[verify.Case] = []
    if job.learned is not None:
        oracle.attach(job.artifact, job.learned.method, job.learned.options)
        if job.scale != 1:
            oracle.fold()
            oracle.blend(job.base.load(), job.scale)
        tuned_cases = verify.ask_torch(oracle, prompts, new)
    if job.quant.kind == "fp32":
        return base_cases, tuned_cases
    if job.learned is None or job.merge:
        oracle.fold()
        oracle.round(job.quant, modules)
        verify.ask_torch_on_grid(oracle, tuned_cases or base_cases, new)
        return base_cases, tuned_cases
    del oracle  # the grid is put on a fresh base, and the adapter on that: as it will run
    oracle = Oracle(job.base.load(), job.base.eos)
    oracle.round(job.quant, modules)
    verify.ask_torch_on_grid(oracle, base_cases, new)
    oracle.attach(job.artifact, job.learned.method, job.learned.options)
    verify.ask_torch_on_grid(oracle, tuned_cases, new)
    return base_cases, tuned_cases


def _prompts(job: Job, tokenizer: Any, count: int, new: int) -> list[list[int]]:
    """Prompts of the run's own data where it recorded some, our own sentences otherwise."""
    texts = [text for text in job.artifact.record.get("samples", []) if isinstance(text, str)] or list(SAMPLES)
    longest = min(LONGEST, job.context - new - 1)
    ids = [tokenizer.backend_tokenizer.encode(text).ids[:longest] for text in texts]
    return [prompt for prompt in ids if prompt][:count] or [[0]]
