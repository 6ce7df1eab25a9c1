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


def lookup_forms(found: Mapping[str, Sequence[Trace]]) -> dict[str, Tensor]:
    """The forms of the weights that are looked up, from the gradients that calibration kept."""
    forms: dict[str, Tensor] = {}
    for name, traces in found.items():
        gradients = [t.gradients.flatten(0, -2).to(torch.float32) for t in traces if isinstance(t, Lookups)]
        if gradients:
            forms[name] = sum((g.T @ g for g in gradients), torch.zeros(()))
    return forms


class _Moments:
    """Sums of x x^T by readers. Readers of one tensor (query, key, value) follow each other and share one sum; only the
    tensor being read is held."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}
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
            moment = _moment(self._given, self.inputs, self.batch)
            key = tuple(self._readers)
            self.sums[key] = self.sums[key].add_(moment) if key in self.sums else moment
        self._given, self._readers = None, []

    def forms(self) -> dict[str, Tensor]:
        """The sums by reader; a weight that is read several times gets them all."""
        found: dict[str, Tensor] = {}
        for readers, moment in self.sums.items():
            for name in readers:
                found[name] = found[name] + moment if name in found else moment
        return found


def product_forms(
    program: Program, sites: Sequence[Site], batches: Sequence[Batch], progress: Progress | None = None
) -> dict[str, Tensor]:
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


def _moment(given: Tensor, inputs: Mapping[str, Tensor], batch: int) -> Tensor:
    """Sum of x x^T over the tokens that are not padding."""
    x = given.to(torch.float32)
    rows = by_example(x, batch, 1)
    if rows is not None:
        x = rows * token_mask(rows, inputs).unsqueeze(-1)
    x = x.flatten(0, -2)
    return x.T @ x
