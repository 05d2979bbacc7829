"""An export's manifest in a few lines for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.contract.forgetting import describe_forgetting

from .placement import describe as describe_placement


def describe(manifest: dict[str, Any], out: Path) -> str:
    """What was written, how large, how equal to torch."""
    total = sum(entry["size"] for entry in manifest["files"].values())
    lines = [f"wrote {out} for {manifest['device']['name']}: {manifest['quant']['kind']}, {total / 2**20:.1f} MiB in "
             f"{len(manifest['files']) + 1} files, graph by {manifest['graph']['builder']}"]
    lines += describe_parity("model" if not manifest["adapters"] else "base", manifest["parity"]["base"],
                             manifest["parity"]["against"])
    for name, report in manifest["parity"]["adapters"].items():
        size = manifest["files"][manifest["adapters"][name]["file"]]["size"]
        lines += describe_parity(f"adapter {name} ({size / 2**20:.2f} MiB)", report, manifest["parity"]["against"])
        lines += describe_limit(manifest["adapters"][name])
    lines += describe_limit(manifest.get("merged", {}))
    lines += [f"  {line}, as trained" for line in describe_forgetting(manifest["provenance"]["forgetting"])]
    memory = manifest["memory"]
    lines.append(f"  memory: {memory['predicted_peak_mib']:,.0f} MiB predicted at {manifest['context']} tokens, "
                 f"{memory['verified_peak_mib']:,.0f} MiB at the peak of verification; "
                 f"the device gives it {manifest['device']['limits']['budget_mib']:,} MiB")
    return "\n".join([*lines, *describe_placement(manifest.get("placement", {}))])


def describe_parity(subject: str, report: dict[str, Any], against: str) -> list[str]:
    """One subject's parity, and what the grid cost it."""
    proof, what = report.get("exact_activations", report), report.get("of", "tokens")
    lines = [f"  {subject}: equals {against}: largest logit difference {proof['largest_logit_difference']:.1e}, "
             f"{report.get('of', 'greedy answers')} equal {proof['greedy_equal']}/{proof['prompts']}"]
    if "exact_activations" in report:
        lines.append(f"    with activations rounded to int8, as onnxruntime does on this processor: {what} agree "
                     f"{report['agreement']:.1%}, KL {report['kl']:.4f} nats")
    if "against_float" in report:
        lines.append(f"    against torch in float: {what} agree {report['against_float']['agreement']:.1%}, "
                     f"KL {report['against_float']['kl']:.4f} nats")
    if "effect" in report:
        lines.append(f"    it changes logits by up to {report['effect']:.2f}, "
                     f"in torch by {report['effect_in_torch']:.2f}")
    if "fidelity" in report:
        lines += _describe_fidelity(report["fidelity"])
    return lines


def describe_limit(entry: dict[str, Any]) -> list[str]:
    """The scale that a budget for forgetting left, and what it costs the task."""
    if "forgetting_budget" not in entry:
        return []
    found, task = entry["forgetting"], entry["task_loss"]
    lines = [f"    scale {entry['scale']:g}: forgets {found['forgetting']:+.4f} nats per token over "
             f"{found['tokens']:,} of {Path(found['probe']).name}, of a budget of {entry['forgetting_budget']:g}"]
    if task:
        full = f" ({task['loss_at_scale_1']:.4f} at scale 1)" if "loss_at_scale_1" in task else ""
        lines.append(f"    loss at that scale {task['loss']:.4f} nats per completion token over {task['tokens']:,} of "
                     f"{Path(task['path']).name}{full}")
    return lines


def _describe_fidelity(found: dict[str, Any]) -> list[str]:
    """What a low-rank adapter lost of the model that it was compressed from."""
    lines = [f"    compressed to rank {found['rank']}: keeps {found['kept']:.1%} of the change (squared norm), "
             f"{found['worst_module']} least: {found['worst_kept']:.1%}",
             f"    against the original in torch: tokens agree {found['agreement']:.1%}, KL {found['kl']:.4f} nats, "
             f"largest logit difference {found['largest_logit_difference']:.2f}"]
    if found["not_carried"]:
        names = found["not_carried"]
        lines.append(f"    not carried, being no linear layers: {', '.join(names[:4])}"
                     + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                     + f" (of all that changed, {found['kept_of_all']:.1%} is kept)")
    return lines


def describe_adapter(name: str, report: dict[str, Any]) -> str:
    """The parity of an adapter that was added."""
    return "\n".join([f"added {name}", *describe_parity(f"adapter {name}", report, "torch"),
                      *describe_limit(report.get("entry", {}))])
