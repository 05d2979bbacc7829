"""Decoders as other exporters write them, made from a tiny llama: other names, forms, types and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeft.contract.files import read_json
from edgeft.contract.grid import quantize
from edgeft.contract.tensors import Weights

MS = "com.microsoft"
STYLES = ("float", "float16", "int4", "int4-asymmetric", "gemm", "dequantize", "dynamic", "fused")
BLOCK = 32


class Llama:
    """One llama as a graph; `change` maps tensor names to functions on their numbers."""

    def __init__(self, base: Path, style: str = "float", cache: str = "shared", change: dict[str, Any] | None = None,
                 packed: bool = False) -> None:
        self.config, self.style, self.cache, self.packed = read_json(base / "config.json"), style, cache, packed
        stored = Weights(base)
        self.weights = {name: np.array(stored[name], np.float32) for name in stored}
        for name, function in (change or {}).items():
            self.weights[name] = function(self.weights[name])
        half = style == "float16"
        self.kind, self.numpy = (ir.DataType.FLOAT16, np.float16) if half else (ir.DataType.FLOAT, np.float32)
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.size = self.config["hidden_size"] // self.heads
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self.outputs: list[ir.Value] = []

    def save(self, path: Path) -> Path:
        """Write it, weights within the file."""
        self._build()
        graph = ir.Graph(self.inputs, self.outputs, nodes=self.nodes, initializers=list(self.constants.values()),
                         opset_imports={"": 21, MS: 1}, name="main")
        ir.save(ir.Model(graph, ir_version=10), path)
        return path

    def add(self, op: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        node = ir.Node(domain, op, inputs, attributes=ir.convenience.convert_attributes(attributes),
                       num_outputs=outputs, name=f"n{len(self.nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def hold(self, array: Any) -> ir.Value:
        name = f"onnx::c{len(self.constants)}"
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        self.constants[name] = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype),
                                        const_value=tensor)
        return self.constants[name]

    def given(self, name: str, kind: ir.DataType, shape: list[Any]) -> ir.Value:
        self.inputs.append(ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape)))
        return self.inputs[-1]

    def give(self, value: ir.Value, name: str, shape: list[Any]) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(self.kind), ir.Shape(shape)
        self.outputs.append(value)

    def linear(self, x: ir.Value, *names: str) -> ir.Value:
        """x times the transposed weights, which stand one below the other, in this graph's style."""
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names])
        out, width = weight.shape
        if self.style.startswith("int4"):
            grid = quantize(weight, 4, BLOCK, self.style == "int4")
            held = [self.hold(grid.codes), self.hold(grid.scales.reshape(-1))]
            held += [] if grid.zeros is None else [self.hold(grid.zeros)]
            return self.add("MatMulNBits", x, *held, domain=MS, K=width, N=out, bits=4, block_size=BLOCK)
        if self.style == "gemm":
            flat = self.add("Reshape", x, self.hold(np.array([-1, width])))
            flat = self.add("Gemm", flat, self.hold(weight), transB=1)
            rows = self.add("Concat", self.add("Shape", self.inputs[0]), self.hold(np.array([out])), axis=0)
            return self.add("Reshape", flat, rows)
        if self.style == "dequantize":
            codes, scale = eight_bits(weight.T)
            return self.add("MatMul", x, self.add("DequantizeLinear", self.hold(codes), self.hold(scale), axis=1))
        if self.style == "dynamic":
            codes, scale = eight_bits(weight.T)
            rounded, step, zero = self.add("DynamicQuantizeLinear", x, outputs=3)
            found = self.add("MatMulInteger", rounded, self.hold(codes), zero)
            return self.add("Mul", self.add("Cast", found, to=1), self.add("Mul", step, self.hold(scale)))
        if self.style == "fused":
            return self.add("FusedMatMul", x, self.hold(weight), domain=MS, transB=1)
        return self.add("MatMul", x, self.hold(weight.T.astype(self.numpy)))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        weight = self.hold(self.weights[f"{name}.weight"].astype(self.numpy))
        return self.add("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.config["rms_norm_eps"])

    def rotary(self) -> list[ir.Value]:
        steps = 10000.0 ** (-np.arange(0, self.size, 2) / self.size)
        angles = np.arange(self.config["max_position_embeddings"])[:, None] * steps
        return [self.hold(f(angles).astype(self.numpy)) for f in (np.cos, np.sin)]

    def _build(self) -> None:
        ids = self.given("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        mask = self.given("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
        positions = self.given("position_ids", ir.DataType.INT64, ["batch_size", "sequence_length"]) \
            if self.cache == "growing" else None
        shape = ["batch_size", self.kv_heads, "past_sequence_length", "kv_cache_dim"]
        layers = range(self.config["num_hidden_layers"])
        past = [[self.given(f"past_key_values.{i}.{part}", self.kind, shape) for i in layers]
                for part in ("key", "value")]  # all keys first, as GenAI's builder orders them
        angles = self.rotary()
        lengths = self.lengths(mask)
        x = self.embed(ids)
        present = []
        for i in layers:
            name = f"model.layers.{i}"
            read = self.norm(x, f"{name}.input_layernorm")
            found = self.attention(read, name, [part[i] for part in past], lengths, mask, positions, angles)
            present += [(f"present.{i}.{part}", value) for part, value in zip(("key", "value"), found[1:], strict=True)]
            x = self.add("Add", x, self.linear(found[0], f"{name}.self_attn.o_proj"))
            read = self.norm(x, f"{name}.post_attention_layernorm")
            gate, up = (self.linear(read, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
            gate = self.add("Mul", gate, self.add("Sigmoid", gate))
            x = self.add("Add", x, self.linear(self.add("Mul", gate, up), f"{name}.mlp.down_proj"))
        head = "lm_head" if "lm_head.weight" in self.weights else "model.embed_tokens"
        logits = self.linear(self.norm(x, "model.norm"), head)
        self.give(logits, "logits", ["batch_size", "sequence_length", self.config["vocab_size"]])
        for label, value in present:
            self.give(value, label, ["batch_size", self.kv_heads, "total_sequence_length", self.size])

    def embed(self, ids: ir.Value) -> ir.Value:
        table = self.weights["model.embed_tokens.weight"]
        if self.style == "dynamic":  # one scale for all, and floats only behind the lookup
            scale = np.float32(np.abs(table).max() / 127)
            found = self.add("Gather", self.hold(np.round(table / scale).astype(np.int8)), ids)
            return self.add("DequantizeLinear", found, self.hold(np.array(scale)))
        return self.add("Gather", self.hold(table.astype(self.numpy)), ids)

    def lengths(self, mask: ir.Value) -> list[ir.Value]:
        """What GroupQueryAttention reads: each row's last position, and the columns of the mask."""
        one = self.hold(np.array([1]))
        last = self.add("Sub", self.add("ReduceSum", mask, one, keepdims=0), one)
        total = self.add("Gather", self.add("Shape", mask), self.hold(np.array(1)))
        return [self.add("Cast", value, to=6) for value in (last, total)]

    def attention(self, read: ir.Value, name: str, past: list[ir.Value], lengths: list[ir.Value], mask: ir.Value,
                  positions: ir.Value | None, angles: list[ir.Value]) -> list[ir.Value]:
        parts = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        if self.packed:
            return self.add("GroupQueryAttention", self.linear(read, *parts), None, None, *past, *lengths, *angles,
                            domain=MS, outputs=3, num_heads=self.heads, kv_num_heads=self.kv_heads, do_rotary=1)
        q, k, v = (self.linear(read, part) for part in parts)
        if self.cache == "shared":
            return self.add("GroupQueryAttention", q, k, v, *past, *lengths, *angles, domain=MS, outputs=3,
                            num_heads=self.heads, kv_num_heads=self.kv_heads, do_rotary=1)
        q, k = (self.add("RotaryEmbedding", value, positions, *angles, domain=MS, num_heads=self.heads,
                         rotary_embedding_dim=self.size) for value in (q, k))
        seen = self.add("Cast", mask, to=6)
        return self.add("MultiHeadAttention", q, k, v, None, seen, None, *past, domain=MS, outputs=3,
                        num_heads=self.heads, unidirectional=1)


def eight_bits(weight: Any) -> tuple[Any, Any]:
    """[in, out] as int8 with a scale for each column."""
    scale = (np.abs(weight).max(0) / 127).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale
