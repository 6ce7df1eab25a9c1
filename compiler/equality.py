"""Whether two callables compute the same, on inputs of other shapes made from an example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.compiler.signature import Limit

SHAPES = ((2, 12), (3, 7), (1, 1))
_SEED = 1234
_ROUNDING = 64
Inputs = dict[str, Tensor]


def resized(example: Mapping[str, Tensor], batch: int, sequence: int, limits: Sequence[Limit] = ()) -> Inputs:
    """The example with other batch and sequence sizes, cut or repeated from its own values, so that they stay in range.

    Dimensions are told apart by size among the first two of every input: the first dimension of the first input is the
    batch; the longest other length becomes `sequence`, shorter ones shrink along.
    """
    first = next(iter(example.values()))
    old = first.shape[0] if first.dim() else 1
    lengths = sorted({t.shape[1] for t in example.values() if _has_sequence(t)}, reverse=True)
    bound = min((limit.max for limit in limits), default=sequence)
    new = {length: max(1, min(sequence, bound) - 2 * i) for i, length in enumerate(lengths)}
    out: Inputs = {}
    for name, tensor in example.items():
        for dim in range(min(tensor.dim(), 2 if _has_sequence(tensor) else 1)):
            size = tensor.shape[dim]
            is_batch = dim == 0 and (size == old or size not in new)
            wanted = batch if is_batch else new.get(size, batch)
            tensor = tensor.index_select(dim, torch.arange(wanted, device=tensor.device) % size)
        if tensor.dim() == 1 and not tensor.dtype.is_floating_point and tensor.dtype != torch.bool and lengths:
            tensor = tensor.clamp(max=max(1, min(new.values())))
        elif tensor is not first and _counts_up_to(tensor, old):
            tensor = tensor.clamp(max=next(iter(out.values())).shape[0])
        out[name] = tensor
    return out


def _counts_up_to(tensor: Tensor, most: int) -> bool:
    """Whether these look like the starts of pieces of something of size `most`: 0, then never less than before."""
    if tensor.dim() != 1 or tensor.dtype.is_floating_point or tensor.is_meta or not tensor.numel():
        return False
    return int(tensor[0]) == 0 and int(tensor.max()) <= most and bool((tensor.diff() >= 0).all())


def _has_sequence(tensor: Tensor) -> bool:
    return tensor.dim() >= 3 or (tensor.dim() == 2 and not tensor.dtype.is_floating_point)


def difference(a: Any, b: Any) -> str | None:
    """What differs between two outputs by more than rounding (NaN equals NaN); None when nothing does.

    Rounding: |a - b| <= 64 eps max(1, max |b|). Almost every model agrees exactly; where a traced graph leaves out a
    copy that only changed the order in memory, sums round in another order.
    """
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    if type(a) is not type(b) or len(left) != len(right):
        return f"{type(a).__name__} with {len(left)} values against {type(b).__name__} with {len(right)}"
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if x is not y and x != y:
                return f"output {i} is {x!r} against {y!r}"
        elif x.shape != y.shape or x.dtype != y.dtype:
            return f"output {i} is {x.dtype} {tuple(x.shape)} against {y.dtype} {tuple(y.shape)}"
        elif (gap := _gap(x, y)) > 0:
            return f"output {i} differs by up to {gap:.3g}"
    return None


def _gap(x: Tensor, y: Tensor) -> float:
    """The largest difference, 0 where it is rounding, infinite where only one is not a number."""
    if torch.equal(x, y):
        return 0.0
    if not torch.equal(x.isnan(), y.isnan()):
        return float("inf")
    left, right = x.detach().double().nan_to_num(), y.detach().double().nan_to_num()
    gap = float((left - right).abs().max())
    exact = not x.dtype.is_floating_point
    allowed = 0.0 if exact else _ROUNDING * torch.finfo(x.dtype).eps * max(1.0, float(right.abs().max()))
    return gap if gap > allowed else 0.0


def disagreement(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    example: Mapping[str, Tensor],
    limits: Sequence[Limit] = (),
    seeded: bool = False,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> str | None:
    """Where and how the two differ: on the example itself and at other shapes (batch, sequence); None when nowhere.
    Other shapes that `theirs` itself refuses are passed over."""
    first = next(iter(example.values()))
    variants = [(f"on the example, {tuple(first.shape)}", dict(example))]
    variants += [(f"at batch {b}, sequence {s}", resized(example, b, s, limits)) for b, s in shapes]
    for number, (where, inputs) in enumerate(variants):
        with fixed_numerics(seeded):
            try:
                expected = theirs(**inputs)
            except Exception:
                if number == 0:
                    raise
                continue
        with fixed_numerics(seeded):
            try:
                found = difference(ours(**inputs), expected)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if found is not None:
            return f"{where}: {found}"
    return None


@contextlib.contextmanager
def fixed_numerics(seeded: bool) -> Iterator[None]:
    """No gradients, no fused inference kernels that only the original has, and the same random numbers each time."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(enabled=seeded):
            if seeded:
                torch.manual_seed(_SEED)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
