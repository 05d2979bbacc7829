"""Export: base graph, slots, quantization, verification, bundle. Modules import torch; this file does not."""
