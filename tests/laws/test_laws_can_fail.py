"""Each law is red on a store or a method that breaks it, and on that law's account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tests.laws.cases import drawn
from tests.laws.laws import (
    STORE_LAWS,
    law_apply,
    law_bound,
    law_codes,
    law_gradients,
    law_idempotent,
    law_monotone,
    law_price,
    law_reason,
    law_refuse,
    law_round_trip,
    law_rows,
    law_shape,
    law_snapped,
)
from torch import Tensor

from tersor.compiler.candidate import Step
from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Affine, Chain, Codebook, Codes, Dense, Store
from tersor.compiler.stores.base import Json
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation, quantise

WEIGHT = drawn(6, 20)


class CheapAffine(Affine):
    """Forgets its zero points when it says what it costs."""

    def nbytes(self) -> int:
        return self.codes.nbytes() + self.scale.nbytes()


class CheapBits(Dense):
    def bits(self) -> int:
        return 8 * self.nbytes() - 1


class TransposedProduct(Dense):
    """Multiplies from the wrong side, which a square weight does not refuse."""

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.dense()


class ImpreciseProduct(Chain):
    """Rounds what passes between the factors to 16 bits."""

    def apply(self, x: Tensor) -> Tensor:
        return self.left.apply(self.right.apply(x).to(torch.bfloat16).to(torch.float32))


class FirstRowTwice(Dense):
    def rows(self, index: Tensor) -> Tensor:
        return super().rows(index.clamp(max=self.shape[0] - 2))


class Transposing(Dense):
    """Writes its array in another order than it reads it."""

    def state(self) -> dict[str, Tensor]:
        return {"": self.values.t().contiguous()}


class Detached(Dense):
    def dense(self) -> Tensor:
        return self.values.detach().clone()

    def bound(self, arrays: Mapping[str, Tensor]) -> Dense:
        return Detached(arrays[""])


class Doubled(Dense):
    """A gradient half as large as the derivative."""

    def dense(self) -> Tensor:
        return self.values + self.values.detach()

    def bound(self, arrays: Mapping[str, Tensor]) -> Dense:
        return Doubled(arrays[""])


class Forgetful(Dense):
    """Loses its exponent with its arrays."""

    def bound(self, arrays: Mapping[str, Tensor]) -> Dense:
        return Dense(arrays[""] * 2, self.dtype)


class Unsnapped(Dense):
    """Says that it is kept in 16 bits but computes with 32."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values, "float16")

    def snapped(self) -> Store:
        return self

    def bound(self, arrays: Mapping[str, Tensor]) -> Dense:
        return Unsnapped(arrays[""])

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Any:
        return Dense.build(shape, meta, parts, array)


def cheap_affine() -> Store:
    honest = quantise(WEIGHT, 4, 5, False)
    return CheapAffine(honest.codes, honest.scale, honest.zero, honest.group)


def wide_codes() -> Store:
    codes = torch.full((6, 20), 4, dtype=torch.uint8)
    return Codebook(Codes(codes, 2), Dense(torch.arange(5.0)))


PLANTED: list[tuple[Callable[[Store], None], Store]] = [
    (law_price, cheap_affine()),
    (law_price, CheapBits(WEIGHT)),
    (law_apply, TransposedProduct(drawn(8, 8))),
    (law_apply, ImpreciseProduct(Dense(drawn(6, 3)), Dense(drawn(3, 20)))),
    (law_rows, FirstRowTwice(WEIGHT)),
    (law_round_trip, Transposing(WEIGHT)),
    (law_round_trip, wide_codes()),
    (law_round_trip, Unsnapped(WEIGHT)),
    (law_codes, wide_codes()),
    (law_gradients, Detached(WEIGHT)),
    (law_gradients, Doubled(WEIGHT)),
    (law_bound, Forgetful(WEIGHT)),
    (law_snapped, Unsnapped(WEIGHT)),
]


@pytest.mark.parametrize(("law", "store"), PLANTED, ids=lambda x: getattr(x, "__name__", type(x).__name__))
def test_a_planted_fault_is_seen(law: Callable[[Store], None], store: Store) -> None:
    with pytest.raises(AssertionError):
        law(store)


def test_every_store_law_has_a_planted_fault() -> None:
    assert {law for law, _ in PLANTED} == set(STORE_LAWS)


def test_law_shape() -> None:
    with pytest.raises(AssertionError):
        law_shape(Dense(WEIGHT.t()), WEIGHT)
    with pytest.raises(AssertionError):
        law_shape(Dense(WEIGHT / 0), WEIGHT)


class FaultyMethod(UniformQuantisation):
    """Uniform codes whose range is a little wider than the weights: every packing widens it again."""

    id = "quant.faulty"

    def pack(self, tensor: Tensor, point: Uniform, context: Context = Context()) -> Affine:
        return quantise(tensor, point.bits, tensor.shape[1], point.symmetric, 1.02)


class RaisingRefuse(UniformQuantisation):
    def refuse(self, shape: tuple[int, ...], point: Uniform) -> Refusal | None:
        return None if shape[1] else Refusal("there is nothing to do")


class SilentRefuse(UniformQuantisation):
    def refuse(self, shape: tuple[int, ...], point: Uniform) -> Refusal | None:
        return Refusal("")


class RaisingPack(Method[Uniform]):
    id, title, source, kinds, Params = "quant.raising", "", "", frozenset(), Uniform

    def refuse(self, shape: tuple[int, ...], point: Params) -> Refusal | None:
        return None

    def pack(self, tensor: Tensor, point: Params, context: Context = Context()) -> Store:
        return Dense(tensor[:, :1].expand_as(tensor))

    def examples(self) -> tuple[Uniform, ...]:
        return (Uniform(),)


def test_law_idempotent() -> None:
    step = Step(FaultyMethod(), Uniform(bits=3))
    with pytest.raises(AssertionError, match="packed twice"):
        law_idempotent(step.method.pack(WEIGHT, step.point), step)


@pytest.mark.parametrize("method", [RaisingRefuse(), SilentRefuse(), RaisingPack()], ids=lambda m: type(m).__name__)
def test_law_refuse(method: Method[Any]) -> None:
    with pytest.raises(AssertionError):
        law_refuse(method, Uniform(), [(5,), (2, 130)])


def test_law_reason() -> None:
    with pytest.raises(AssertionError):
        law_reason(Refusal(" "))


def test_law_monotone() -> None:
    stores = [quantise(WEIGHT, bits, 20, False) for bits in (2, 4)]
    with pytest.raises(AssertionError, match="do not grow"):
        law_monotone(stores[::-1], WEIGHT)
    with pytest.raises(AssertionError, match="more error"):
        law_monotone([stores[0], quantise(WEIGHT, 4, 20, False, 0.3)], WEIGHT)
    with pytest.raises(AssertionError, match="worse than dropping"):
        law_monotone([quantise(-WEIGHT, 2, 20, False)], WEIGHT)
