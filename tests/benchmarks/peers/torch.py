"""PyTorch: float32, and the dynamic int8 of torch.ao."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tests.benchmarks.contender import COPIES, Array, FirstOutput, Linear, Model, Subject, several
from torch import nn


def linears(weight: Array, x: Array, threads: int) -> Iterator[tuple[str, Linear]]:
    """`threads` is torch's own setting."""
    rows, columns = weight.shape
    inputs = [torch.from_numpy(x.copy()) for _ in range(COPIES)]
    linears = [nn.Linear(columns, rows, bias=False) for _ in inputs]
    for linear, held in zip(linears, several(weight), strict=True):
        linear.weight.data = torch.from_numpy(held)
    plain = Several(linears)
    yield "torch fp32", Linear(32, 4 * weight.size, _on(plain, inputs))
    yield "torch dynamic int8", Linear(8, weight.size + 4 * rows, _on(_dynamic(plain), inputs))


def prepare(subject: Subject, folder: Path) -> None:
    """Nothing to convert."""


def models(subject: Subject, folder: Path, threads: int) -> Iterator[tuple[str, Model]]:
    yield "torch fp32", of_module(subject.module, list(subject.example))
    yield "torch dynamic int8", of_module(_dynamic(subject.module), list(subject.example))


def of_module(module: nn.Module, names: Sequence[str]) -> Model:
    """The first output of a module that takes keyword tensors."""
    first = FirstOutput(module, names)

    def run(inputs: Mapping[str, Array]) -> Array:
        return first(*[torch.from_numpy(value) for value in inputs.values()]).numpy()

    return run


def _dynamic(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.ao is to be removed; today it is what torch has
        kinds = {nn.Linear, nn.LSTM, nn.GRU}
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), kinds, dtype=torch.qint8)


class Several(nn.Module):
    """Modules, each on an input of its own."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [part(x) for part, x in zip(self.parts, inputs, strict=True)]


def _on(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Callable[[], Array]:
    return lambda: module(inputs)[0].numpy()
