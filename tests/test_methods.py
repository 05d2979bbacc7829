"""Every first-party method passes the kit."""

from edgeft_plugins.full import Full, FullOptions
from edgeft_plugins.lora import Lora, LoraOptions

from edgeft.testing import MethodKit

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
