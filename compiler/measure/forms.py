"""The quadratic form of a row's error: which directions of a weight's columns matter, for methods that compensate.

    read as y = x W^T    H = mean over tokens of x x^T          (the error of a row e costs e H e^T)
    looked up as W[i]    H = sum over tokens of g g^T           (g: gradient of the probe at the row looked up)

H is (in, in). Only its shape matters to the methods, not its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.compiler.measure.collect import Batch, Lookups, Progress, Trace, batch_size, by_example, limited
from tersor.compiler.measure.layers import recurrent_inputs
from tersor.compiler.measure.signal import token_mask
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import slots

MAX_EXAMPLES = 1024
BLOCK = 256
"""Rows of a form that are held together."""


class Form:
    """A symmetric sum of x x^T, (width, width): the block rows of its upper triangle, which is little more than half of
    it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._rows = [torch.zeros(min(BLOCK, width - at), width - at) for at in range(0, width, BLOCK)]

    def add(self, x: Tensor) -> None:
        """Add the sum over the rows of x, (tokens, width)."""
        for at, rows in zip(range(0, self.width, BLOCK), self._rows, strict=True):
            rows.addmm_(x[:, at : at + BLOCK].T, x[:, at:])

    def __add__(self, other: Form) -> Form:
        total = Form(self.width)
        for rows, mine, theirs in zip(total._rows, self._rows, other._rows, strict=True):
            torch.add(mine, theirs, out=rows)
        return total

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(rows.nbytes for rows in self._rows)

    def arrays(self) -> dict[str, Tensor]:
        """What is held, by name."""
        return {str(i): rows for i, rows in enumerate(self._rows)}

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> Form:
        """The inverse of `arrays`."""
        form = cls(arrays["0"].shape[1])
        form._rows = [arrays[str(i)] for i in range(len(form._rows))]
        return form

    def dense(self) -> Tensor:
        """All of it."""
        full = torch.empty(self.width, self.width)
        for at, rows in zip(range(0, self.width, BLOCK), self._rows, strict=True):
            full[at : at + BLOCK, at:] = rows
            full[at + BLOCK :, at : at + BLOCK] = rows[:, BLOCK:].T
        return full


def lookup_forms(found: Mapping[str, Sequence[Trace]]) -> dict[str, Form]:
    """The forms of the weights that are looked up, from the gradients that calibration kept."""
    forms: dict[str, Form] = {}
    for name, traces in found.items():
        for trace in traces:
            if isinstance(trace, Lookups):
                gradients = trace.gradients.flatten(0, -2).to(torch.float32)
                forms.setdefault(name, Form(gradients.shape[1])).add(gradients)
    return forms


class _Moments:
    """Sums of x x^T by readers. Readers of one tensor (query, key, value) follow each other and share one sum; only the
    tensor being read is held."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Form] = {}
        self.inputs: Mapping[str, Tensor] = {}
        self.batch = 0
        self._given: Tensor | None = None
        self._readers: list[str] = []

    def read(self, given: Tensor, reader: str) -> None:
        if given is not self._given:
            self.flush()
            self._given = given
        self._readers.append(reader)

    def flush(self) -> None:
        if self._given is not None:
            rows = _rows(self._given, self.inputs, self.batch)
            self.sums.setdefault(tuple(self._readers), Form(rows.shape[1])).add(rows)
        self._given, self._readers = None, []

    def forms(self) -> dict[str, Form]:
        """The sums by reader; a weight that is read several times gets them all."""
        found: dict[str, Form] = {}
        for readers, moment in self.sums.items():
            for name in readers:
                found[name] = found[name] + moment if name in found else moment
        return found


def product_forms(
    program: Program, sites: Sequence[Site], batches: Sequence[Batch], progress: Progress | None = None
) -> dict[str, Form]:
    """The forms of linear and recurrent weights from one forward pass."""
    run = program.callable().eval()
    moments = _Moments()
    wanted: dict[str, dict[str, str]] = {}
    for site in sites:
        for path, attribute in slots(run.graph_module, site):
            wanted.setdefault(path, {})[attribute] = site.name

    def note(names: Mapping[str, str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = {"weight": arguments[0]}
            if isinstance(module, nn.RNNBase):
                rows = recurrent_inputs(module, *arguments)
            for attribute, given in rows.items():
                if attribute in names:
                    moments.read(given, names[attribute])

        return read

    handles = [
        run.graph_module.get_submodule(path).register_forward_pre_hook(note(names)) for path, names in wanted.items()
    ]
    try:
        done, total = 0, min(MAX_EXAMPLES, sum(map(batch_size, batches)))
        for batch in limited(batches, MAX_EXAMPLES):
            inputs = run.bind((), dict(batch))
            moments.inputs, moments.batch = inputs, batch_size(batch)
            with torch.no_grad():
                run.graph_module(*[inputs[n] for n in run.signature.names])
            moments.flush()
            done += batch_size(batch)
            if progress:
                progress("measuring inputs", done, total)
    finally:
        for handle in handles:
            handle.remove()
    return moments.forms()


def _rows(given: Tensor, inputs: Mapping[str, Tensor], batch: int) -> Tensor:
    """What is read, (tokens, width), zero where it is padding."""
    x = given.to(torch.float32)
    rows = by_example(x, batch, 1)
    if rows is not None:
        x = rows * token_mask(rows, inputs).unsqueeze(-1)
    return x.flatten(0, -2)
