"""Every first-party method passes the kit."""

import torch
from edgeft_plugins.full import Full, FullOptions
from edgeft_plugins.ia3 import Ia3, Ia3Options
from edgeft_plugins.lora import Lora, LoraOptions
from edgeft_plugins.multitask_prompt import MultitaskPrompt, MultitaskPromptOptions
from edgeft_plugins.p_tuning import PTuning, PTuningOptions
from edgeft_plugins.prefix_tuning import PrefixTuning, PrefixTuningOptions
from edgeft_plugins.prompt_tuning import PromptTuning, PromptTuningOptions

from edgeft.testing import MethodKit
from edgeft.testing.case import logits_of

PATTERNS = {"down_proj": 5, "c_fc": 3}


class TestLora(MethodKit):
    method = Lora()
    options = (
        LoraOptions(),
        LoraOptions(r=3, lora_alpha=6, use_rslora=True),
        LoraOptions(target_modules=("lm_head",), lora_dropout=0.2),
        LoraOptions(target_modules=(r".*\.(q_proj|down_proj|c_attn|c_fc)",), rank_pattern=PATTERNS,
                    alpha_pattern=PATTERNS),
        LoraOptions(target_modules=("q_proj", "down_proj", "c_attn"), layers_to_transform=(1,)))


class TestFull(MethodKit):
    method = Full()
    options = (FullOptions(), FullOptions(freeze_embeddings=True))
    learns = ".*"


class TestIa3(MethodKit):
    method = Ia3()
    options = (Ia3Options(), Ia3Options(target_modules=("k_proj", "o_proj", "c_attn")))


class TestPromptTuning(MethodKit):
    method = PromptTuning()
    options = (PromptTuningOptions(num_virtual_tokens=4), PromptTuningOptions(3, prompt_tuning_init="RANDOM"))


class TestPTuning(MethodKit):
    method = PTuning()
    options = (PTuningOptions(num_virtual_tokens=4),
               PTuningOptions(3, encoder_reparameterization_type="LSTM", encoder_hidden_size=8, encoder_num_layers=1))


class TestPrefixTuning(MethodKit):
    method = PrefixTuning()
    options = (PrefixTuningOptions(num_virtual_tokens=4), PrefixTuningOptions(3, prefix_projection=True),
               PrefixTuningOptions(3, start="zero"))


class TestMultitaskPrompt(MethodKit):
    method = MultitaskPrompt()
    options = (MultitaskPromptOptions(("first", "second"), "second", 4, 2),)

    def forward(self, model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """PEFT must be told each row's task."""
        return logits_of(model, ids, task_ids=torch.ones(len(ids), dtype=torch.long))
