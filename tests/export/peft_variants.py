"""PEFT adapters of every type and of every LoRA field that changes the arithmetic, on tiny models, perturbed."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.contract.peft_types import PEFT_TYPES

# torch's Linear without biases and tied; with biases; Conv1D, which stores [in, out]
ARCHITECTURES = ("llama", "qwen2", "gpt2")
LINEAR = ("llama", "qwen2")
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "qwen2": ["q_proj", "v_proj", "down_proj"],
           "gpt2": ["c_attn", "c_fc"]}
EMBEDDING = {"llama": "embed_tokens", "qwen2": "embed_tokens", "gpt2": "wte"}
NORM = {"llama": "input_layernorm", "qwen2": "input_layernorm", "gpt2": "ln_1"}


@dataclass(frozen=True)
class Variant:
    """One adapter: its PEFT type and config, where PEFT can build it, and what becomes of it (the table's word)."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ARCHITECTURES
    fate: str | dict[str, str] = ""  # "slots", "merged" or "refused"; per architecture where it differs
    edit: dict[str, Any] = field(default_factory=dict)  # put into adapter_config.json afterwards
    word: str = ""  # that a refusal must hold; the type's name otherwise

    def expected(self, architecture: str) -> str:
        """What the table says, unless this variant is a case of its own."""
        fate = PEFT_TYPES[self.kind]
        general = "slots" if fate.slots else "merged" if fate.merged else "refused"
        return (self.fate.get(architecture, general) if isinstance(self.fate, dict) else self.fate) or general


def lora(name: str, fate: str | dict[str, str] = "", on: tuple[str, ...] = ARCHITECTURES, word: str = "",
         edit: dict[str, Any] | None = None, **options: Any) -> Variant:
    return Variant(f"lora-{name}", "LORA", {"r": 4, **options}, on, fate, edit or {}, word)


VARIANTS = [
    lora("plain"),
    lora("rslora", lora_alpha=3, use_rslora=True),
    lora("patterns", on=LINEAR, rank_pattern={"layers.1.self_attn.q_proj": 7}, alpha_pattern={"down_proj": 3}),
    lora("all-linear", target_modules="all-linear"),
    lora("one-layer", layers_to_transform=[1]),
    lora("one-layer-named", on=LINEAR, layers_to_transform=[1], layers_pattern="layers"),
    lora("expression", target_modules=r".*\.1\..*(q_proj|c_attn)"),
    lora("exclude", on=LINEAR, exclude_modules=["v_proj"]),
    lora("head", on=LINEAR, target_modules=["q_proj", "lm_head"]),
    lora("gaussian", init_lora_weights="gaussian"),
    lora("orthogonal", init_lora_weights="orthogonal"),
    lora("eva", init_lora_weights="eva"),
    lora("mica", init_lora_weights="mica"),
    lora("pissa", init_lora_weights="pissa"),
    lora("pissa-rslora", init_lora_weights="pissa", use_rslora=True, lora_alpha=3),
    lora("olora", on=LINEAR, init_lora_weights="olora"),
    lora("dora", {"qwen2": "merged", "gpt2": "merged"}, use_dora=True),
    lora("dora-rslora", use_dora=True, use_rslora=True, on=("llama",)),
    lora("dora-pissa", "merged", use_dora=True, init_lora_weights="pissa", on=("llama",)),
    lora("bias-all", "merged", bias="all", on=("qwen2", "gpt2")),
    lora("bias-lora-only", "merged", bias="lora_only", on=("qwen2", "gpt2")),
    lora("lora-bias", "merged", lora_bias=True, on=("gpt2",)),
    lora("lora-bias-no-bias", "refused", lora_bias=True, on=("llama",), word="bias"),
    lora("saved-head", "merged", modules_to_save=["lm_head"]),
    lora("saved-norm", "merged", modules_to_save=["@norm"]),
    lora("embedding", "merged", target_modules=["@embedding"]),
    lora("embedding-dora", "merged", target_modules=["@embedding"], use_dora=True),
    lora("embedding-tied", "merged", target_modules=["@embedding"], ensure_weight_tying=True, on=LINEAR),
    lora("tokens", "merged", trainable_token_indices=[3, 40]),
    lora("parameters", target_modules=[], target_parameters=["mlp.down_proj.weight"], on=LINEAR),
    lora("velora", on=LINEAR, velora_config={"num_groups": 4}),
    lora("monteclora", on=LINEAR, monteclora_config={}),
    lora("kasa", "slots", on=LINEAR, kasa_config={}),
    lora("block-diagonal", on=LINEAR, use_bdlora={"target_modules_bd_a": ["q_proj"], "nblocks": 2,
                                                  "match_strict": False}),
    lora("alora", "refused", alora_invocation_tokens=[5, 6], word="alora_invocation_tokens", on=("llama",)),
    lora("replication", "refused", layer_replication=[[0, 2], [0, 2]], word="layer_replication", on=("llama",)),
    lora("arrow", "refused", edit={"arrow_config": {"top_k": 2}}, word="arrow_config", on=("llama",)),
    lora("qalora", "refused", edit={"use_qalora": True}, word="use_qalora", on=("llama",)),
    lora("megatron", "refused", edit={"megatron_config": {"a": 1}}, word="megatron_config", on=("llama",)),
    lora("pissa-niter", "refused", edit={"init_lora_weights": "pissa_niter_4"}, word="pissa_niter_4", on=("llama",)),
    lora("corda", "refused", edit={"init_lora_weights": "corda"}, word="corda", on=("llama",)),
    lora("loftq", "refused", edit={"init_lora_weights": "loftq"}, word="loftq", on=("llama",)),
    lora("lora-ga", "refused", edit={"init_lora_weights": "lora_ga"}, word="lora_ga", on=("llama",)),
    lora("of-tomorrow", "refused", edit={"use_tomorrow": True}, word="use_tomorrow", on=("llama",)),
    Variant("adalora", "ADALORA", {"init_r": 4, "target_r": 3, "total_step": 10}),
    Variant("adalora-large", "ADALORA", {"init_r": 30, "total_step": 10}, fate="merged"),
    Variant("adamss", "ADAMSS", {"r": 4, "num_subspaces": 2}, LINEAR, {"qwen2": "merged"}),
    Variant("adaption-prompt", "ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 1}, ("llama",)),
    Variant("beft", "BEFT", {"target_modules": ["q_proj", "v_proj"]}, LINEAR, {"llama": "refused"}),
    Variant("boft", "BOFT", {"boft_block_size": 4}, LINEAR),
    Variant("c3a", "C3A", {"block_size": 16}, LINEAR),
    Variant("cartridge", "CARTRIDGE", {"num_virtual_tokens": 3}, ("llama",)),
    Variant("cpt", "CPT", {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1] * 3, "cpt_tokens_type_mask": [1, 2, 3]}, LINEAR),
    Variant("deft", "DEFT", {"r": 4}),
    Variant("delora", "DELORA", {"r": 4}, LINEAR),
    Variant("fourierft", "FOURIERFT", {"n_frequency": 50}),
    Variant("frod", "FROD"),
    Variant("glora", "GLORA", {}, LINEAR),
    Variant("gralora", "GRALORA", {"r": 4}),
    Variant("hira", "HIRA", {"r": 4}),
    Variant("hra", "HRA", {"r": 4}, LINEAR),
    Variant("ia3", "IA3", {"feedforward_modules": ["@second"]}, fate={"gpt2": "merged"}),
    Variant("lily", "LILY", {}, ("llama",)),
    Variant("ln-tuning", "LN_TUNING", {"target_modules": ["@norm"]}),
    Variant("loha", "LOHA", {"r": 2}, LINEAR),
    Variant("lokr", "LOKR", {"r": 4}, LINEAR),
    Variant("lokr-factor", "LOKR", {"r": 4, "decompose_factor": 4, "decompose_both": True}, LINEAR),
    Variant("miss", "MISS", {"r": 4}, LINEAR),
    Variant("multitask-prompt-tuning", "MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 3, "num_tasks": 2},
            ("llama",)),
    Variant("oft", "OFT", {"oft_block_size": 8}, LINEAR),
    Variant("osf", "OSF", {}, LINEAR),
    Variant("p-tuning", "P_TUNING", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    Variant("peanut", "PEANUT", {"r": 4}, LINEAR),
    Variant("poly", "POLY", {"r": 4, "n_tasks": 2, "n_skills": 2}, ("llama",)),
    Variant("prefix-tuning", "PREFIX_TUNING", {"num_virtual_tokens": 3}, LINEAR),
    Variant("prompt-tuning", "PROMPT_TUNING", {"num_virtual_tokens": 3}),
    Variant("psoft", "PSOFT", {"r": 4}, LINEAR),
    Variant("pvera", "PVERA", {"r": 8}),
    Variant("randlora", "RANDLORA", {"r": 4}),
    Variant("road", "ROAD", {"group_size": 16}, LINEAR),
    Variant("road-4", "ROAD", {"group_size": 16, "variant": "road_4"}, LINEAR),
    Variant("shadow", "SHADOW", {}, ("llama",)),
    Variant("shira", "SHIRA", {"r": 4}, LINEAR),
    Variant("supertuning", "SUPERTUNING", {}, LINEAR),
    Variant("tinylora", "TINYLORA"),
    Variant("trainable-tokens", "TRAINABLE_TOKENS", {"token_indices": [3, 40], "target_modules": ["@embedding"]}),
    Variant("unilora", "UNILORA", {"r": 4}),
    Variant("vblora", "VBLORA", {"r": 4, "vector_length": 8, "num_vectors": 16}),
    Variant("vera", "VERA", {"r": 8}),
    Variant("vera-large", "VERA", {"r": 256}, fate="merged"),
    Variant("waveft", "WAVEFT", {"n_frequency": 50}),
    Variant("xlora", "XLORA", {}, ("llama",)),
]


def build(variant: Variant, architecture: str, base: Path, out: Path, seed: int = 1) -> Path:
    """Let PEFT build and save it, every tensor that learns moved off its start."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM

    if variant.kind == "XLORA":  # it wants its LoRAs on disk first; it is refused by its name alone
        out.mkdir()
        (out / "adapter_config.json").write_text(json.dumps({"peft_type": "XLORA", "task_type": "CAUSAL_LM"}))
        return out
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[variant.kind]
    names = {item.name for item in dataclasses.fields(config_class)}
    options = json.loads(json.dumps(variant.options).replace("@embedding", EMBEDDING[architecture])
                         .replace("@norm", NORM[architecture]).replace("@second", TARGETS[architecture][-1]))
    if "target_modules" in names and variant.kind not in ("ADAPTION_PROMPT", "SHADOW"):
        options.setdefault("target_modules", TARGETS[architecture])
    if architecture == "gpt2" and "fan_in_fan_out" in names:
        options.setdefault("fan_in_fan_out", True)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base),
                               config_class(task_type="CAUSAL_LM", **_nested(options)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(out, save_embedding_layers=False)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, **variant.edit}))
    return out


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """Plain dictionaries to the config classes that LoraConfig wants."""
    from peft.tuners.lora import config

    classes = {"velora_config": config.VeloraConfig, "monteclora_config": config.MontecloraConfig,
               "kasa_config": config.KasaConfig, "use_bdlora": config.BdLoraConfig}
    return {name: classes[name](**value) if name in classes else value for name, value in options.items()}
