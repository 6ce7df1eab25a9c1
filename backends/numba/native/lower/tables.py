"""Look-ups in tables, and sums of what is found, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from tersor.backends.numba.bags import SummedEmbedding, bags_step
from tersor.backends.numba.gather import GatheredEmbedding, gather_step, refuse_index, table_operands
from tersor.backends.numba.gatherkernels import GatherSpec
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import Operand, Value


def _contiguous(b: Builder, index: Value) -> Value:
    return index if index.dense else b.torch(torch.Tensor.contiguous, (index,), {})


def _gather(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    embedding: GatheredEmbedding = module
    (index,) = args
    if embedding.level != b.level or index.dtype is not torch.int64:
        return NotImplemented
    index, table = _contiguous(b, index), embedding.table
    y = b.new((*index.shape, table.columns))
    wrong = b.check(partial(refuse_index, rows=table.rows))
    operands = (index.ref, table_operands(table, b.keep), y.ref, wrong)
    b.step(gather_step(GatherSpec(b.level, embedding.form), table, index.numel, *operands))
    return y


def _bags(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    """(index), (index, weights) or (index, weights, starts)."""
    summed: SummedEmbedding = module
    embedding = summed.embedding
    index, weights, starts = (*(None if x is None else b.value(x) for x in args), None, None)[:3]
    if index is None or embedding.level != b.level or index.dtype is not torch.int64:
        return NotImplemented
    if not summed.fits(index, weights):
        return NotImplemented
    index, table = _contiguous(b, index), embedding.table
    given: list[Operand] = [index.ref, 0, 0]
    lead = index.shape[:-1]
    if weights is not None:
        if weights.dtype is not torch.float32:
            return NotImplemented
        given[1] = b.dense(weights).ref
    if starts is not None:
        if starts.dtype is not torch.int64:
            return NotImplemented
        given[2] = _contiguous(b, starts).ref
        lead = (starts.numel - 1,)
    y = b.new((*lead, table.columns))
    wrong = b.check(partial(refuse_index, rows=table.rows))
    spec, shape = GatherSpec(b.level, embedding.form, True), (y.numel // table.columns, index.shape[-1], summed.mean)
    index_, weights_, starts_ = given
    b.step(bags_step(spec, table, *shape, (index_, weights_, starts_), table_operands(table, b.keep), y.ref, wrong))
    return y


HANDLERS: Mapping[Any, Handler] = {GatheredEmbedding: _gather, SummedEmbedding: _bags}
