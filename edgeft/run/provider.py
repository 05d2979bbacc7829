"""The execution provider that runs a bundle's graphs, and that no node falls back from it unseen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnxruntime as ort

from edgeft.contract.bundle import Bundle
from edgeft.contract.errors import EdgeftError, did_you_mean
from edgeft.contract.events import warn

Provider = tuple[str, dict[str, str]]  # its name and its options
Wanted = str | Provider | None
CPU = "CPUExecutionProvider"
FREEZES = {"OpenVINOExecutionProvider"}  # it takes inputs that have a default for constants, and says nothing
RECORD = "session.record_ep_graph_assignment_info"
INSTALL = {
    "OpenVINOExecutionProvider": "Install onnxruntime-openvino in place of onnxruntime (an environment of its own)",
    "QNNExecutionProvider": "Install onnxruntime-qnn on a Snapdragon device",
    "CoreMLExecutionProvider": "Install onnxruntime on macOS, or its CocoaPod on iOS",
    "CUDAExecutionProvider": "Install onnxruntime-gpu in place of onnxruntime",
    "TensorrtExecutionProvider": "Install onnxruntime-gpu in place of onnxruntime, and TensorRT",
    "WebGpuExecutionProvider": "Open the bundle's page in a browser that has WebGPU",
}


def choose(bundle: Bundle, wanted: Wanted = None) -> Provider:
    """The bundle's own provider with its options, or another one that was asked for; EdgeftError without it."""
    run = bundle.manifest["device"]["run"]
    name, options = (wanted or str(run["provider"]), None) if not isinstance(wanted, tuple) else wanted
    found = ort.get_available_providers()
    if name not in found:
        way = INSTALL.get(name, "Install an onnxruntime that has it") + ", or run it on the processor with --provider "
        near = did_you_mean(name, found) if wanted else ""
        raise EdgeftError(f"{bundle.folder}: its provider is not installed.{near}\n"
                          f"  provider  declared {name}  found {', '.join(found)}\n{way}{CPU}.")
    if options is None:
        options = run["options"] if name == run["provider"] else {}
    return name, dict(options)


def here(bundle: Bundle) -> str | None:
    """The processor where the bundle's own provider is not installed: an exporter seldom is the device."""
    return None if bundle.manifest["device"]["run"]["provider"] in ort.get_available_providers() else CPU


def settings_for(provider: str, settings: ort.SessionOptions) -> ort.SessionOptions:
    """What a session needs for us to know where its nodes went, and to compute blocked weights exactly."""
    # int8 activations are for MatMulNBits, which says so itself; graphs in standard operators are the exact ones
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if provider != CPU:
        settings.add_session_config_entry(RECORD, "1")
    return settings


def placement(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """Operators by the provider that runs them; a session must have been opened with `settings_for`."""
    placed: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counts = placed.setdefault(part.ep_name, Counter())
        counts.update(node.op_type for node in part.get_nodes())
    return placed


def check_placed(who: Any, provider: str, session: ort.InferenceSession) -> None:
    """Say which nodes the processor runs in the provider's place; EdgeftError where the provider runs none."""
    if provider == CPU:
        return
    placed = placement(session)
    fallen = sum((counts for name, counts in placed.items() if name != provider), Counter[str]())
    if provider not in session.get_providers() or provider not in placed:
        raise EdgeftError(f"{who}: {provider} was asked for and runs none of the graph. It could not be started, or "
                          f"takes none of its operators ({_listed(fallen)}).")
    if fallen:
        total = fallen.total() + placed[provider].total()
        warn("fallback", f"{who}: {fallen.total()} of {total} nodes run on the processor, not on {provider}: "
             f"{_listed(fallen)}", graph=str(who), to=CPU)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
