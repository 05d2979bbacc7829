"""Passes over a traced graph: the contract's names, optimization that keeps the weights, linears as MatMul."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir
    import transformers


def name_values(traced: ir.Model, model: transformers.PreTrainedModel, layers: int) -> None:
    """Give inputs, outputs and weights the contract's names, order and shapes; tied weights become one."""
    import onnx_ir as ir

    graph = traced.graph
    pairs = [(i, kind) for i in range(layers) for kind in ("key", "value")]
    inputs = {value.name: value for value in graph.inputs}
    for i, kind in pairs:
        inputs[f"past_{i}_{kind}"].name = f"past_key_values.{i}.{kind}"
    outputs = {value.name: value for value in graph.outputs}
    for i, kind in pairs:
        outputs[f"present_{i}_{kind}"].name = f"present.{i}.{kind}"
    open_axes = {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "total"), "logits": ("batch", "seq")}
    for value in (*graph.inputs, *graph.outputs):
        if value.name in open_axes:
            value.shape = ir.Shape([*open_axes[value.name], *value.shape[2:]])
        else:
            rows = "past" if value.name.startswith("past_") else "total"
            value.shape = ir.Shape(["batch", value.shape[1], rows, value.shape[3]])

    for found, name in canonical_names(model).items():
        value = graph.initializers.get(found)
        if value is None or found == name:
            continue
        if name in graph.initializers:
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
            del graph.initializers[found]
        else:
            value.name = name


def canonical_names(model: transformers.PreTrainedModel) -> dict[str, str]:
    """Every weight's name to the one under which its tensor lies in the model's file (tied ones to their source)."""
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    weights = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, weight in weights.items():
        if name not in ties:
            first.setdefault(id(weight), name)
    return {name: first.get(id(weight), name) for name, weight in weights.items()}


def optimize(traced: ir.Model, weights: set[str], limit: int = 4096) -> None:
    """onnxscript's optimizer, blind to the weights: as inputs they are neither folded nor merged."""
    from onnxscript import optimizer

    graph = traced.graph
    held = {name: graph.initializers.pop(name) for name in list(graph.initializers) if name in weights}
    tensors = {name: value.const_value for name, value in held.items()}
    own = len(graph.inputs)
    for value in held.values():
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(traced, input_size_limit=limit, output_size_limit=limit)
    del graph.inputs[own:]
    for name, value in held.items():
        if value.uses():
            value.const_value = tensors[name]
            graph.register_initializer(value)


def gemm_to_matmul(traced: ir.Model) -> None:
    """Gemm(x, W, b) as Add(MatMul(x, Transpose(W)), b): one form of a linear for every later pass to find."""
    import onnx_ir as ir

    for node in [node for node in traced.graph if node.op_type == "Gemm" and node.domain == ""]:
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if not plain or node.attributes.get_int("transA", 0):
            continue
        tape = ir.tape.Tape()
        x, weight, *bias = node.inputs
        if node.attributes.get_int("transB", 0):
            weight = tape.op("Transpose", [weight], {"perm": [1, 0]})
        old = node.outputs[0]
        result = tape.op("MatMul", [x, weight])
        result.shape, result.type = old.shape, old.type
        if bias and bias[0] is not None:
            result = tape.op("Add", [result, bias[0]])
            result.shape, result.type = old.shape, old.type
        for new in tape.nodes:
            new.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(traced.graph, node, [node], tape.nodes, [old], [result])


def unflatten_linears(traced: ir.Model, weights: set[str], rows: set[str]) -> None:
    """Give linears that a model runs on [batch * seq, in] (opt, shared experts) an input of [batch, seq, in] again.

    Slots gate each row of the batch, so they need the batch axis. `rows` are the symbols of batch and seq.
    """
    import onnx_ir as ir

    graph = traced.graph
    split = None
    for node in [node for node in graph if node.op_type == "MatMul"]:
        x, weight = node.inputs
        producer = weight.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else weight
        if source.name not in weights or x.shape is None or len(x.shape) != 2:
            continue
        if set(str(x.shape[0]).replace(" ", "").split("*")) != rows:
            continue
        if split is None:
            tape = ir.tape.Tape()
            last = tape.op("Constant", [], {"value": ir.tensor([-1], dtype=ir.DataType.INT64)})
            split = tape.op("Concat", [tape.op("Shape", [graph.inputs[0]]), last], {"axis": 0})
            graph.insert_before(graph[0], tape.nodes)
        tape, old = ir.tape.Tape(), node.outputs[0]
        wide = tape.op("Reshape", [x, split])
        wide.shape, wide.dtype = ir.Shape(["batch", "seq", x.shape[1]]), x.dtype
        product = tape.op("MatMul", [wide, weight])
        size = tape.op("Constant", [], {"value": ir.tensor([-1, old.shape[1]], ir.DataType.INT64)})
        flat = tape.op("Reshape", [product, size])
        product.shape, product.dtype = ir.Shape(["batch", "seq", old.shape[1]]), old.dtype
        flat.shape, flat.dtype = old.shape, old.dtype
        for new in tape.nodes:
            new.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [old], [flat])
