"""What becomes of each PEFT type: a table for people, and the reasons that a refusal gives.

`tests/export/test_peft_zoo.py` holds it against PEFT itself: every type of its enum, each doing what is said here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fate:
    """`slots` it lowers to beside the base; whether it merges; or the reason why neither."""

    slots: tuple[str, ...] = ()
    merged: bool = True
    reason: str = ""

    def __str__(self) -> str:
        if self.slots:
            return f"slots: {', '.join(self.slots)}" + ("" if self.merged else " (no merge)") + \
                (f"; {self.reason}" if self.reason else "")
        return "merged" + (f"; {self.reason}" if self.reason else "") if self.merged else f"refused: {self.reason}"


_LOWRANK = Fate(("lowrank",))
_WHEN_SMALL = Fate(("lowrank",), reason="merged where its rank is large")
_MERGED = Fate()
_PREFIX = Fate(("prefix",), merged=False)


def _refused(reason: str) -> Fate:
    return Fate(merged=False, reason=reason)


PEFT_TYPES: dict[str, Fate] = {
    "ADALORA": _WHEN_SMALL,
    "ADAMSS": Fate(("lowrank",), reason="merged where its rank is large; PEFT needs scikit-learn to load it"),
    "ADAPTION_PROMPT": _refused("its prompts enter through a gate inside every attention, after its softmax"),
    "BEFT": Fate(reason="where the layers have biases"),
    "BOFT": _MERGED,
    "C3A": _MERGED,
    "CARTRIDGE": _refused("its keys and values are not lowered in this version"),
    "CPT": _refused("its prompt, token embeddings with learned steps, is not lowered in this version"),
    "DEFT": _WHEN_SMALL,
    "DELORA": _WHEN_SMALL,
    "FOURIERFT": _MERGED,
    "FROD": _MERGED,
    "GLORA": _MERGED,
    "GRALORA": _WHEN_SMALL,
    "HIRA": _MERGED,
    "HRA": _WHEN_SMALL,
    "IA3": Fate(("scale",)),
    "LILY": _refused("a router weighs its experts by the input, so there is no one change of the weights"),
    "LN_TUNING": _MERGED,
    "LOHA": _WHEN_SMALL,
    "LOKR": _MERGED,
    "LORA": Fate(("lowrank", "scale"), reason="scale for DoRA"),
    "MISS": _WHEN_SMALL,
    "MULTITASK_PROMPT_TUNING": _PREFIX,
    "OFT": _MERGED,
    "OSF": _MERGED,
    "PEANUT": _WHEN_SMALL,
    "POLY": _refused("it routes by a task id that comes with each request"),
    "PREFIX_TUNING": _PREFIX,
    "PROMPT_TUNING": _PREFIX,
    "PSOFT": _WHEN_SMALL,
    "PVERA": _WHEN_SMALL,
    "P_TUNING": _PREFIX,
    "RANDLORA": _MERGED,
    "ROAD": _MERGED,
    "SHADOW": _refused("it runs a second, smaller model beside the base"),
    "SHIRA": _MERGED,
    "SUPERTUNING": _MERGED,
    "TINYLORA": _WHEN_SMALL,
    "TRAINABLE_TOKENS": _MERGED,
    "UNILORA": _WHEN_SMALL,
    "VBLORA": _WHEN_SMALL,
    "VERA": _WHEN_SMALL,
    "WAVEFT": _MERGED,
    "XLORA": _refused("a classifier weighs several LoRAs by the input: export those one by one and stack them"),
}

# Fields of an adapter_config.json that PEFT itself cannot fold into weights, by type
REFUSED_FIELDS: dict[str, dict[str, str]] = {
    "LORA": {
        "alora_invocation_tokens": "it switches on in the middle of a prompt (aLoRA)",
        "arrow_config": "a router weighs several LoRAs by the input (Arrow)",
        "layer_replication": "the model it makes has more layers than its base",
        "use_qalora": "its A reads pooled inputs of a GPTQ base (QA-LoRA)",
        "megatron_config": "its layers are Megatron's, cut over several devices",
    },
}
# `init_lora_weights` that take a part of the base away which does not follow from the base alone
REFUSED_INITS: dict[str, str] = {
    "pissa_niter_": "its start came from a random projection",
    "corda": "its start came from data",
    "lora_ga": "its start came from gradients on data",
    "loftq": "its base is a quantized one that the folder does not hold",
}
