"""From a module to one ATen graph with symbolic lengths: `torch.export` under controlled conditions."""

from __future__ import annotations

import contextlib
import inspect
import io
import keyword
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from tersor.compiler.capture.composites import COMPOSITES
from tersor.compiler.errors import CaptureError
from tersor.compiler.recurrence import RECURRENT
from tersor.compiler.shapes import shapes_only

_CONFIG = {"use_cache": False, "return_dict": True}
_REMEDY = (
    "keep the part that cannot be traced as it is with opaque=['path.of.the.submodule'], fix options that branch on "
    'values, and load Hugging Face models with attn_implementation="sdpa"'
)


def export(model: nn.Module, example: Mapping[str, Tensor], training: bool) -> fx.GraphModule:
    """The exported graph as a plain GraphModule that shares the model's parameters; CaptureError when torch cannot."""
    shapes = {name: dict.fromkeys(dynamic_dims(name, tensor), Dim.AUTO) for name, tensor in example.items()}
    model.train(training)
    try:
        with (
            torch.no_grad(), shapes_only({**RECURRENT, **COMPOSITES}), _fastpath_off(), _named_inputs(model, example),
            _told_by_the_error(), warnings.catch_warnings(),
        ):  # fmt: skip
            # nn.LSTM reads a list of its own weights; they are parameters all the same.
            warnings.filterwarnings("ignore", message="The tensor attributes? .*_flat_weights")
            program = torch.export.export(model, (), dict(example), dynamic_shapes=shapes, strict=False)
    except CaptureError:
        raise
    except Exception as error:  # torch.export raises anything the model or the tracer raises
        raise CaptureError(_explain(model, error)) from error
    exported = program.module(check_guards=False)
    return fx.GraphModule(exported, exported.graph)


@contextlib.contextmanager
def _told_by_the_error() -> Iterator[None]:
    """Before it raises, torch prints the graph it had so far and logs warnings: the error says what they would."""
    disabled = logging.root.manager.disable
    printed = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        logging.disable(disabled)
    sys.stderr.write(printed.getvalue())  # not where an error went through


def check_names(model: nn.Module) -> None:
    """The graph becomes Python source in which a path is a chain of attributes: name those that cannot stand there."""
    paths = [name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
    for path in paths:
        if any(c in path for c in '"\\\n') or any(keyword.iskeyword(part) for part in path.split(".")):
            raise CaptureError(
                f"the attribute `{path}` of {type(model).__name__} cannot be captured: Python keywords, double quotes, "
                f"backslashes and line ends may not stand in its path; rename it"
            )


def check_states(model: nn.Module, example: Mapping[str, Tensor]) -> None:
    """The first dimension of an input may vary, which the number of layers in a recurrent state cannot."""
    layers: dict[tuple[int, ...], str] = {
        (m.num_layers * (1 + m.bidirectional), width): name or type(m).__name__
        for name, m in model.named_modules()
        if isinstance(m, nn.RNNBase)
        for width in (m.hidden_size, m.proj_size or m.hidden_size)
    }
    for name, tensor in example.items():
        shape = tuple(tensor.shape)
        others = {tuple(t.shape[:2]) for t in example.values() if tuple(t.shape) != shape}
        stands_alone = shape[:2] not in others and any(shape[1] in sizes for sizes in others if len(shape) == 3)
        if stands_alone and tensor.dtype.is_floating_point and shape[::2] in layers:
            raise CaptureError(
                f"input {name!r} of shape {shape} is a state of {layers[shape[::2]]}, (layers, batch, width), but the "
                f"first dimension of an input must be the batch: let `forward` take it as (batch, layers * width) and "
                f"turn it there: {name}.view(-1, {shape[0]}, {shape[2]}).transpose(0, 1).contiguous()"
            )


def stretched(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The example with every dynamic dimension of size 1 doubled, since a size of 1 would become a constant."""
    out = {}
    for name, tensor in example.items():
        for dim in dynamic_dims(name, tensor):
            if tensor.shape[dim] == 1:
                tensor = tensor.repeat_interleave(2, dim)
        out[name] = tensor
    return out


def dynamic_dims(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Dimensions that may vary: the first two (batch, sequence); of floating (batch, features) only the first."""
    if tensor.dtype.is_floating_point and tensor.dim() == 2 and "mask" not in name:
        return (0,)
    return tuple(range(min(tensor.dim(), 2)))


def check_dynamic(gm: fx.GraphModule, example: Mapping[str, Tensor]) -> None:
    """`Dim.AUTO` turns a dimension into a constant without a word; say so instead."""
    for node in gm.graph.find_nodes(op="placeholder"):
        for dim in dynamic_dims(node.target, example[node.target]):
            size = node.meta["val"].shape[dim]
            if isinstance(size, int) or size.node.maybe_as_int() is not None:
                raise CaptureError(
                    f"dimension {dim} of input {node.target!r} became the constant {int(size)}: the model computes "
                    f"with that size in Python, as a loop over time steps or an RNN cell called step by step does. "
                    f"Replace the loop by nn.LSTM or nn.GRU, or keep the submodule that loops as it is: "
                    f"opaque=['path.of.the.submodule']"
                )


@contextlib.contextmanager
def plain_config(model: nn.Module) -> Iterator[None]:
    """No caches and named outputs on every (sub-)config, the training flags as they were afterwards."""
    training = {module: module.training for module in model.modules()}
    saved: list[tuple[Any, str, Any]] = []
    configs = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
    for config in configs.values():
        for key, value in _CONFIG.items():
            if isinstance(getattr(config, key, None), bool):
                saved.append((config, key, getattr(config, key)))
                setattr(config, key, value)
    try:
        yield
    finally:
        for config, key, value in saved:
            setattr(config, key, value)
        for module, flag in training.items():
            module.training = flag


@contextlib.contextmanager
def _fastpath_off() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _named_inputs(model: nn.Module, example: Mapping[str, Tensor]) -> Iterator[None]:
    """While exporting, a `forward` that catches inputs in `**kwargs` has them as parameters of their own: torch.export
    gives symbolic sizes to named parameters only."""
    original = model.forward
    try:
        bound = inspect.signature(original).bind(**example)
    except TypeError as error:
        raise CaptureError(f"the example does not fit {type(model).__name__}.forward: {error}") from None
    if set(bound.arguments) == set(example):
        yield
        return

    def forward(**inputs: Tensor) -> Any:
        return original(**inputs)

    kind = inspect.Parameter.KEYWORD_ONLY
    named = inspect.Signature([inspect.Parameter(name, kind) for name in example])
    vars(forward)["__signature__"] = named
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _explain(model: nn.Module, error: Exception) -> str:
    cause = " ".join(line.strip() for line in str(error).strip().splitlines()[:2] if line.strip())
    place = _innermost(model, error)
    where = f" in {place}" if place else ""
    problem = f"{type(error).__name__}: {cause[:300]}"
    return f"{type(model).__name__} cannot be captured{where}: {problem}. What to try: {_REMEDY}"


def _innermost(model: nn.Module, error: Exception) -> str:
    """The deepest submodule whose code was running."""
    names = {id(module): f"{name} ({type(module).__name__})" for name, module in model.named_modules() if name}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
