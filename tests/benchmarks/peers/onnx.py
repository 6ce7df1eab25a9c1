"""ONNX Runtime: float32, dynamic int8 (DynamicQuantizeLinear and MatMulInteger, fused), MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import optimizer
from tests.benchmarks.contender import COPIES, Array, FirstOutput, Linear, Model, Subject, several

INT8_COMPUTE = 4  # MatMulNBits with activations of 8 bits, the fastest level
OPSET = 21
FUSED = "com.microsoft"  # where the operators of the optimizer are defined


def linears(weight: Array, x: Array, threads: int) -> Iterator[tuple[str, Linear]]:
    rows, plain = len(weight), _matmul(weight, len(x))
    yield "onnxruntime fp32", Linear(32, 4 * weight.size, _bound(plain, x, rows, threads))
    dynamic = _dynamic(plain)
    yield "onnxruntime dynamic int8", Linear(8, weight.size + 4 * rows, _bound(dynamic, x, rows, threads))
    for bits, group in ((8, 32), (4, 32), (4, 128)):
        quantiser = MatMulNBitsQuantizer(
            _matmul(weight, len(x)), bits, group, is_symmetric=True, accuracy_level=INT8_COMPUTE
        )
        quantiser.process()
        size = weight.size * bits // 8 + 4 * weight.size // group
        run = _bound(quantiser.model.model, x, rows, threads)
        yield f"onnxruntime {bits} bits, groups of {group}", Linear(bits, size, run)


def prepare(subject: Subject, folder: Path) -> None:
    """Write float.onnx, fused where it is an encoder, and int8.onnx. Attention is recognised in the graph of the older
    exporter, with the plain computation of attention only."""
    names = list(subject.example)
    arguments = tuple(torch.from_numpy(subject.example[name]) for name in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "y")}
    attention = getattr(subject.module, "set_attn_implementation", lambda _: None)
    attention("eager")
    try:
        torch.onnx.export(
            FirstOutput(subject.module, names), arguments, str(folder / "plain.onnx"), input_names=names,
            output_names=["y"], dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    finally:
        attention("sdpa")
    model = onnx.load(folder / "plain.onnx")
    if subject.heads:
        fused = optimizer.optimize_model(str(folder / "plain.onnx"), "bert", subject.heads, subject.hidden, opt_level=0)
        if not fused.get_fused_operator_statistics()["Attention"]:
            raise RuntimeError("onnxruntime's optimizer found no attention to fuse: the comparison would flatter us")
        model = fused.model
        if not any(held.domain == FUSED for held in model.opset_import):  # without it shapes are not inferred
            model.opset_import.append(helper.make_opsetid(FUSED, 1))
    onnx.save(model, folder / "float.onnx")
    quantize_dynamic(
        folder / "float.onnx", folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip


def models(subject: Subject, folder: Path, threads: int) -> Iterator[tuple[str, Model]]:
    for label, file in (("onnxruntime fp32", "float.onnx"), ("onnxruntime dynamic int8", "int8.onnx")):
        yield label, _model(_session(str(folder / file), threads))


def _session(model: str | bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads wait busily within a call, but do not take the cores from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model(session: Any) -> Model:
    names = {entry.name for entry in session.get_inputs()}
    return lambda inputs: session.run(None, {name: x for name, x in inputs.items() if name in names})[0]


def _bound(model: Any, x: Array, rows: int, threads: int) -> Callable[[], Array]:
    """With inputs and outputs bound beforehand: the smallest overhead that its Python interface has."""
    session = _session(model.SerializeToString(), threads)
    inputs, outputs = [x.copy() for _ in range(COPIES)], [np.empty((len(x), rows), np.float32) for _ in range(COPIES)]
    binding = session.io_binding()
    for i, (given, y) in enumerate(zip(inputs, outputs, strict=True)):
        binding.bind_input(f"x{i}", "cpu", 0, np.float32, given.shape, given.ctypes.data)
        binding.bind_output(f"y{i}", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run(_kept: Any = inputs) -> Array:
        session.run_with_iobinding(binding)
        return outputs[0]

    return run


def _matmul(weight: Array, batch: int) -> Any:
    """y = x @ w^T, COPIES times."""
    rows, columns = weight.shape
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], name=f"linear{i}") for i in range(COPIES)]
    ends = [
        [helper.make_tensor_value_info(f"{name}{i}", TensorProto.FLOAT, [batch, width]) for i in range(COPIES)]
        for name, width in (("x", columns), ("y", rows))
    ]
    held = [numpy_helper.from_array(np.ascontiguousarray(w.T), f"w{i}") for i, w in enumerate(several(weight))]
    graph = helper.make_graph(nodes, "linears", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _dynamic(model: Any) -> Any:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(model, file, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(file)
