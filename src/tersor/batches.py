"""Batches of keyword arguments: checked against the model, and split into those that decide and those that judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tersor.compiler.callable import CompiledModule
from tersor.compiler.errors import RequestError

Batch = Mapping[str, Tensor]

EVERY = 10
"""Every tenth example is kept away from calibration and judges the result."""


def plain_batches(data: Iterable[Any]) -> list[Batch]:
    """The batches on the CPU in float32, without arguments that are None. RequestError names the wrong one."""
    found: list[Batch] = []
    for number, batch in enumerate(data, 1):
        if not isinstance(batch, Mapping):
            raise RequestError(
                f"batch {number} of the data is a {type(batch).__name__}, not a mapping of keyword arguments"
            )
        given = {name: value for name, value in batch.items() if value is not None}
        wrong = [str(name) for name, value in given.items() if not isinstance(value, Tensor)]
        if wrong:
            raise RequestError(f"batch {number} of the data: {', '.join(wrong)} is not a tensor")
        if not given or any(value.dim() == 0 or value.numel() == 0 for value in given.values()):
            raise RequestError(f"batch {number} of the data is empty")
        found.append(
            {n: v.detach().to("cpu", torch.float32 if v.dtype.is_floating_point else v.dtype) for n, v in given.items()}
        )
    if not found:
        raise RequestError("the data has no examples")
    return found


def split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to calibrate with, and every tenth (at least the last) to judge by; a single batch calibrates."""
    if len(batches) == 1:
        return list(batches), []
    away = set(range(EVERY - 1, len(batches), EVERY)) or {len(batches) - 1}
    return [b for i, b in enumerate(batches) if i not in away], [batches[i] for i in sorted(away)]


def check_inputs(module: CompiledModule, batches: Sequence[Batch]) -> None:
    """Raise RequestError where a batch is not what the model takes: names and ranks, lengths."""
    for number, batch in enumerate(batches, 1):
        try:
            module.bind((), dict(batch))
        except (TypeError, RequestError) as problem:
            raise RequestError(f"batch {number} of the data does not fit the model: {problem}") from None


def blame(module: CompiledModule, batches: Sequence[Batch]) -> None:
    """After a failure: raise RequestError if a batch alone makes the model fail; return if none does."""
    for number, batch in enumerate(batches, 1):
        try:
            with torch.no_grad():
                module(**batch)
        except (RuntimeError, IndexError, ValueError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise RequestError(f"the model fails on batch {number} of the data: {reason}") from None
