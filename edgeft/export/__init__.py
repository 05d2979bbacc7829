"""Export: base graph, slots, quantization, verification, bundle. Modules import torch and onnx_ir; this file does not."""
