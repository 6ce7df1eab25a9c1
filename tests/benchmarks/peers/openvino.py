"""OpenVINO with NNCF: float32, 8- and 4-bit weights with activations quantised on the way, and int8 calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from nncf import CompressWeightsMode
from nncf.parameters import ModelType
from openvino import opset13
from tests.benchmarks.contender import COPIES, Array, FirstOutput, Linear, Model, Subject, several

GROUPS = (32, 128)  # of columns that share an activation scale
CORE = openvino.Core()


def linears(weight: Array, x: Array, threads: int) -> Iterator[tuple[str, Linear]]:
    rows = len(weight)
    yield "openvino fp32", Linear(32, 4 * weight.size, _run(_compiled(_matmul(weight, len(x)), threads), x))
    eight = _quietly(nncf.compress_weights, _matmul(weight, len(x)), mode=CompressWeightsMode.INT8_SYM)
    for group in GROUPS:
        run = _run(_compiled(eight, threads, group), x)
        yield f"openvino 8 bits, activations by {group}", Linear(8, weight.size + 4 * rows, run)
    static = _quietly(nncf.quantize, _matmul(weight, len(x)), nncf.Dataset([[x] * COPIES]))
    yield "openvino int8 calibrated", Linear(8, weight.size + 4 * rows, _run(_compiled(static, threads), x))
    for group in GROUPS:
        four = _quietly(
            nncf.compress_weights,
            _matmul(weight, len(x)),
            mode=CompressWeightsMode.INT4_SYM,
            group_size=group,
            ratio=1.0,
            all_layers=True,
        )
        size = weight.size // 2 + 2 * weight.size // group
        run = _run(_compiled(four, threads, group), x)
        yield f"openvino 4 bits, groups of {group}", Linear(4, size, run)


def prepare(subject: Subject, folder: Path) -> None:
    """Write float.xml, weights8.xml and int8.xml, the last calibrated on the subject's own text."""
    names = list(subject.example)
    example = tuple(torch.from_numpy(value) for value in subject.example.values())
    shapes = [[-1] * value.ndim for value in example]
    model = openvino.convert_model(FirstOutput(subject.module, names), example_input=example, input=shapes)
    openvino.save_model(model, folder / "float.xml", compress_to_fp16=False)
    eight = _quietly(nncf.compress_weights, CORE.read_model(folder / "float.xml"), mode=CompressWeightsMode.INT8_SYM)
    openvino.save_model(eight, folder / "weights8.xml", compress_to_fp16=False)
    data = nncf.Dataset([[batch[name] for name in names] for batch in subject.calibration])
    kind = ModelType.TRANSFORMER if subject.heads else None
    plain = CORE.read_model(folder / "float.xml")
    static = _quietly(nncf.quantize, plain, data, model_type=kind, subset_size=len(subject.calibration))
    openvino.save_model(static, folder / "int8.xml", compress_to_fp16=False)


def models(subject: Subject, folder: Path, threads: int) -> Iterator[tuple[str, Model]]:
    yield "openvino fp32", _model(_compiled(CORE.read_model(folder / "float.xml"), threads))
    eight = CORE.read_model(folder / "weights8.xml")
    for group in GROUPS:
        yield f"openvino 8 bits, activations by {group}", _model(_compiled(eight, threads, group))
    yield "openvino int8 calibrated", _model(_compiled(CORE.read_model(folder / "int8.xml"), threads))


def _quietly(convert: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Without its progress bars."""
    with redirect_stdout(StringIO()):
        return convert(*arguments, **settings)


def _compiled(model: Any, threads: int, group: int | None = None) -> Any:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if group is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group)
    return CORE.compile_model(model, "CPU", settings).create_infer_request()


def _run(request: Any, x: Array) -> Callable[[], Array]:
    """With inputs bound beforehand."""
    inputs = [x.copy() for _ in range(COPIES)]
    for i, given in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(given, shared_memory=True))

    def run(_kept: Any = inputs) -> Array:
        request.infer()
        return request.get_output_tensor(0).data

    return run


def _model(request: Any) -> Model:
    return lambda inputs: request.infer(list(inputs.values()), share_inputs=True, share_outputs=True)[0]


def _matmul(weight: Array, batch: int) -> Any:
    """y = x @ w^T, COPIES times."""
    inputs = [opset13.parameter([batch, weight.shape[1]], np.float32, name=f"x{i}") for i in range(COPIES)]
    held = [opset13.constant(w, name=f"w{i}") for i, w in enumerate(several(weight))]
    pairs = zip(inputs, held, strict=True)
    products = [opset13.matmul(x, w, transpose_a=False, transpose_b=True) for x, w in pairs]
    return openvino.Model(products, inputs, "linears")
