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


def product_forms(
    program: Program, sites: Sequence[Site], batches: Sequence[Batch], progress: Progress | None = None
) -> dict[str, Tensor]:
    """The forms of linear and recurrent weights from one forward pass; readers of the same tensor (query, key, value)
    share one."""
    run = program.callable().eval()
    shared: dict[tuple[str, ...], Tensor] = {}
    seen: dict[int, tuple[Tensor, list[str]]] = {}
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
                    seen.setdefault(id(given), (given, []))[1].append(names[attribute])

        return read

    handles = [
        run.graph_module.get_submodule(path).register_forward_pre_hook(note(names)) for path, names in wanted.items()
    ]
    try:
        done, total = 0, min(MAX_EXAMPLES, sum(map(batch_size, batches)))
        for batch in limited(batches, MAX_EXAMPLES):
            inputs = run.bind((), dict(batch))
            with torch.no_grad():
                run.graph_module(*[inputs[n] for n in run.signature.names])
            for given, readers in seen.values():
                key = tuple(readers)
                shared[key] = shared.get(key, torch.zeros(())) + _moment(given, inputs, batch_size(batch))
            seen.clear()
            done += batch_size(batch)
            if progress:
                progress("measuring inputs", done, total)
    finally:
        for handle in handles:
            handle.remove()
    forms: dict[str, Tensor] = {}
    for names, form in shared.items():
        for name in names:
            forms[name] = forms[name] + form if name in forms else form
    return forms


def _moment(given: Tensor, inputs: Mapping[str, Tensor], batch: int) -> Tensor:
    """Sum of x x^T over the tokens that are not padding."""
    x = given.to(torch.float32)
    rows = by_example(x, batch, 1)
    if rows is not None:
        x = rows * token_mask(rows, inputs).unsqueeze(-1)
    x = x.flatten(0, -2)
    return x.T @ x
