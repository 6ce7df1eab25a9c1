"""What every store and every method must keep, as functions that raise AssertionError where it is broken.

Bounds: u = 2^-24 is the unit roundoff of float32. A sum of n products in any order differs from the exact one by at
most n u / (1 - n u) times the sum of the absolute products; where a product passes through a chain of factors, the
terms of every inner sum count as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tersor.compiler.candidate import Step, pack
from tersor.compiler.method import Method, Refusal
from tersor.compiler.stores import Chain, Codes, Store, from_state
from tersor.compiler.stores.base import join

UNIT = 2.0**-24
SMALLEST = 2.0**-126
"""Below it float32 is subnormal and a product may lose all its bits."""


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, but for the sign of a zero."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def chains(store: Store) -> list[Chain]:
    inner = [c for part in store.parts().values() for c in chains(part)]
    return [store, *inner] if isinstance(store, Chain) else inner


def magnitude(store: Store) -> Tensor:
    """|W| as far as rounding is concerned: |L| |R| for a chain, in float64."""
    if isinstance(store, Chain):
        return magnitude(store.left) @ magnitude(store.right)
    return store.dense().detach().double().abs()


def rounding(store: Store, terms: int) -> float:
    """u times the number of terms of all sums between the arrays and the result."""
    return UNIT * (terms + 4 + 2 * sum(c.rank + 1 for c in chains(store)))


def law_shape(store: Store, tensor: Tensor) -> None:
    dense = store.dense()
    assert tuple(store.shape) == tuple(tensor.shape) == tuple(dense.shape)
    assert dense.dtype == torch.float32
    assert bool(dense.isfinite().all())


def law_apply(store: Store) -> None:
    """apply(x) = x dense()^T within the rounding of the sums."""
    x = torch.randn(3, 2, store.shape[1], generator=torch.Generator().manual_seed(5))
    found = store.apply(x).detach().double()
    expected = x.double() @ store.dense().detach().double().T
    allowed = 2 * rounding(store, store.shape[1]) * (x.double().abs() @ magnitude(store).T) + SMALLEST
    assert found.shape == (3, 2, store.shape[0])
    assert bool(((found - expected).abs() <= allowed).all()), f"apply is off by {float((found - expected).abs().max())}"


def law_rows(store: Store) -> None:
    """rows(i) = dense()[i], for an index of two dimensions with repetitions."""
    index = torch.tensor([[0, store.shape[0] - 1, 0], [store.shape[0] // 2, 0, store.shape[0] - 1]])
    found, expected = store.rows(index).detach(), store.dense().detach()[index]
    assert found.shape == expected.shape
    if not chains(store):
        assert torch.equal(found, expected), "rows(i) is not dense()[i]"
        return
    allowed = 2 * rounding(store, 0) * magnitude(store)[index] + SMALLEST
    assert bool(((found.double() - expected.double()).abs() <= allowed).all()), "rows(i) is not dense()[i]"


def law_price(store: Store) -> None:
    """nbytes() and bits() are what state() takes, counted byte by byte."""
    written = sum(a.contiguous().reshape(-1).view(torch.uint8).numel() for a in store.state().values())
    assert store.nbytes() == written, f"priced at {store.nbytes()} bytes, takes {written}"
    assert store.bits() == 8 * written, f"priced at {store.bits()} bits, takes {8 * written}"


def law_round_trip(store: Store) -> None:
    """spec() through JSON and state() give the same store again, bit for bit."""
    spec, state = json.loads(json.dumps(store.spec(), allow_nan=False)), store.state()
    again = from_state(spec, {join("w", name): array for name, array in state.items()}.get, "w")
    assert bits_equal(again.dense(), store.dense().detach()), "not the same tensor after the way to disk and back"
    assert again.spec() == store.spec()
    assert set(again.state()) == set(state)
    assert all(bits_equal(again.state()[name], array) for name, array in state.items())


def law_codes(store: Store) -> None:
    """Every code fits its width."""
    if isinstance(store, Codes):
        assert store.values.numel() == 0 or int(store.values.max()) < 2**store.width, "a code is wider than its width"
    for part in store.parts().values():
        law_codes(part)


def law_bound(store: Store) -> None:
    """bound(arrays()) is the same store; names of arrays() are those of state()."""
    same = store.bound(store.arrays())
    assert bits_equal(same.dense(), store.dense())
    assert same.spec() == store.spec()
    assert set(store.arrays()) == set(store.state())


def law_snapped(store: Store) -> None:
    """What is packed is already what the disk holds; trained arrays are after `snapped`, which does nothing twice."""
    assert bits_equal(store.snapped().dense(), store.dense().detach()), "a fresh store changes when it is written"
    generator = torch.Generator().manual_seed(3)
    trained = {
        name: a * (1 + 0.1 * torch.randn(a.shape, generator=generator)) if a.dtype.is_floating_point else a
        for name, a in store.arrays().items()
    }
    once = store.bound(trained).snapped()
    assert bits_equal(once.snapped().dense(), once.dense()), "rounding twice is not rounding once"
    law_round_trip(once)


def law_gradients(store: Store) -> None:
    """dense() is differentiable in every floating array, with the derivative that a difference quotient has: dense() is
    linear in each array, so the quotient is exact up to rounding, 2^-20 of the largest terms."""
    generator = torch.Generator().manual_seed(4)
    arrays = {n: a.detach().clone() for n, a in store.arrays().items()}
    floating = [n for n, a in arrays.items() if a.dtype.is_floating_point and a.numel()]
    assert floating, "nothing in this store can be trained"
    for name in floating:
        arrays[name].requires_grad_(True)
    weights = torch.randn(store.shape, generator=generator)
    total = (store.bound(arrays).dense() * weights).sum()
    assert total.requires_grad, "no gradient reaches any array"
    total.backward()
    plain = {n: a.detach() for n, a in arrays.items()}
    for name in floating:
        gradient = arrays[name].grad
        assert gradient is not None, f"no gradient reaches {name}"
        assert bool(gradient.isfinite().all())
        step = plain[name].abs().max().clamp_min(1e-30) * torch.randn(plain[name].shape, generator=generator)
        ahead = store.bound(plain | {name: plain[name] + step}).dense().double()
        behind = store.bound(plain | {name: plain[name] - step}).dense().double()
        quotient = float(((ahead - behind) / 2 * weights.double()).sum())
        slope = float((gradient.double() * step.double()).sum())
        size = float(((ahead.abs() + behind.abs()) * weights.double().abs()).sum())
        assert abs(quotient - slope) <= 2.0**-20 * size + SMALLEST, f"{name}: slope {slope}, quotient {quotient}"


STORE_LAWS = (law_apply, law_rows, law_price, law_round_trip, law_codes, law_bound, law_snapped, law_gradients)


def law_idempotent(store: Store, last: Step, tolerance: float = 0.0) -> None:
    """Packing again what a store stands for changes nothing: every leaf the last step packed, packed from its dense
    tensor.

    `tolerance` is relative to the largest value; 0 means bit for bit.
    """
    again = last.method.pack(store.dense().detach(), last.point)
    assert type(again) is type(store)
    largest = float(store.dense().detach().abs().max()) if store.dense().numel() else 0.0
    off = float((again.dense() - store.dense()).detach().abs().max()) if store.dense().numel() else 0.0
    assert off <= tolerance * largest, f"{last.text} packed twice moves a value by {off} of {largest}"


def law_monotone(stores: Sequence[Store], tensor: Tensor, floor: float = 0.0) -> None:
    """More bytes never do more damage, and every one does less than dropping the tensor. `floor` is an error, relative
    to the squared norm, that rounding the scales to 16 bits may cause at any size."""
    size = float(tensor.double().square().sum())
    errors = [float((s.dense().detach().double() - tensor.double()).square().sum()) for s in stores]
    sizes = [s.nbytes() for s in stores]
    assert sizes == sorted(sizes), f"the examples do not grow: {sizes}"
    for earlier, later in pairwise(errors):
        assert later <= earlier * (1 + 1e-6) + floor * size, f"more bytes, more error: {errors}"
    assert all(error <= size * (1 + 1e-6) for error in errors), f"worse than dropping the tensor: {errors} of {size}"


def law_refuse(method: Method[Any], point: Any, shapes: Iterable[tuple[int, ...]]) -> None:
    """`refuse` answers None or a reason for any shape; `pack` of a candidate answers a store of that shape or a
    reason."""
    for shape in shapes:
        try:
            answer = method.refuse(shape, point)
        except Exception as problem:
            raise AssertionError(f"refuse raises on {shape}: {problem!r}") from problem
        law_reason(answer)
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        try:
            packed = pack(tensor, (Step(method, point),))
        except Exception as problem:
            raise AssertionError(f"pack raises on {shape}: {problem!r}") from problem
        if isinstance(packed, Refusal):
            assert answer is not None, "pack refuses what refuse allows"
            law_reason(packed)
        else:
            assert answer is None, "pack takes what refuse refuses"
            law_shape(packed, tensor)


def law_reason(answer: Refusal | None) -> None:
    assert answer is None or (isinstance(answer, Refusal) and len(answer.reason.strip()) > 5), (
        "a refusal without a reason"
    )
