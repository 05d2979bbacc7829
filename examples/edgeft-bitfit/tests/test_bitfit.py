"""BitFit passes edgeft's kit."""

from edgeft_bitfit import BitFit, BitFitOptions

from edgeft.testing import MethodKit


class TestBitFit(MethodKit):
    method = BitFit()
    options = (BitFitOptions(), BitFitOptions(layers=("q_proj", "c_fc")))
    bases = ("qwen2", "gpt2")
    learns = r"\.bias$"
