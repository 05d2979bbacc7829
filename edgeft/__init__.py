"""edgeft: fine-tune a language model where the GPU is, run it with any number of adapters where the user is."""

__version__ = "0.1.0"
