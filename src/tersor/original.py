"""A user's model as a program: a copy on the CPU in float32, captured, with the original's own types and bytes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tersor.compiler.capture import capture
from tersor.compiler.errors import CaptureError, RequestError
from tersor.compiler.program import Program
from tersor.compiler.site import Site

HALF = (torch.float16, torch.bfloat16)


def captured(
    model: nn.Module,
    example: Mapping[str, Any],
    *,
    opaque: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
    share: bool = False,
) -> Program:
    """The program of a copy of the model; the model itself stays as it is. Raises CaptureError.

    With `share` the program reads the model's own parameters (where they are float32 and on the CPU), which saves the
    memory of a copy: for planning, which changes nothing.

    16-bit models are captured in float32 (exact), and their sites count the bytes of their own type.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    if not isinstance(example, Mapping):
        raise RequestError(
            f"the example is a {type(example).__name__}, not a mapping of keyword arguments of `forward`"
        )
    types = {name: p.dtype for name, p in model.named_parameters(remove_duplicate=False)}
    plain = all(p.dtype not in HALF and p.device.type == "cpu" for p in model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    try:
        own = model if share and plain else copy.deepcopy(model)
    except (RuntimeError, TypeError) as problem:
        raise CaptureError(f"the model cannot be copied: {problem}") from None
    own = own.to("cpu").eval()
    halves = sorted({str(t)[6:] for t in types.values() if t in HALF})
    if halves:
        own = own.float()
    try:
        program = capture(own, {n: _plain(v) for n, v in example.items()}, opaque=opaque, copy=False, roles=roles)
    finally:
        for module, training in modes:
            module.training = training
    if not halves:
        return program
    note = f"the model is in {' and '.join(halves)}: captured and computed in float32, counted in its own bytes"
    sites = tuple(_as_stored(site, types) for site in program.sites)
    return replace(program, sites=sites, notes=(*program.notes, note))


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().to("cpu")
    return value.float() if value.dtype in HALF else value


def _as_stored(site: Site, types: Mapping[str, torch.dtype]) -> Site:
    dtype = types.get(site.name)
    if dtype not in HALF or dtype is None:
        return site
    return replace(site, dtype=str(dtype)[6:], bytes=site.params * dtype.itemsize)
