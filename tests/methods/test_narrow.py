"""`accumulator = 16`: ranges are widened where sums would not fit, by no more than they must be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.compiler.method import Context
from tersor.compiler.stores import Affine
from tersor.compiler.stores.sums import excess
from tersor.passes.quantize.int8 import Int8, Int8Quantisation
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation

METHOD = UniformQuantisation()


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def excesses(store: Affine, bits: int, group: int) -> Tensor:
    return excess(store.codes.values.to(torch.int16) - (1 << (bits - 1)), 9 - bits, group)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("group", ["row", 64])
@pytest.mark.parametrize("columns", [256, 200])
@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("clip", [False, True])
def test_codes_fit_and_other_groups_are_as_ever(
    bits: int, group: str | int, columns: int, rounding: str, clip: bool
) -> None:
    weight = drawn(48, columns)
    inputs = drawn(600, columns, 1)
    context = Context(form=inputs.T @ inputs / 600)
    point = Uniform(bits=bits, group=group, symmetric=True, clip=clip, rounding=rounding)  # type: ignore[arg-type]
    width = columns if group == "row" else int(group)
    before = METHOD.pack(weight, point, context)
    after = METHOD.pack(weight, point.model_copy(update={"accumulator": 16}), context)
    too_large = excesses(before, bits, width) > 1
    assert too_large.any()
    assert bool((excesses(after, bits, width) <= 1).all())
    kept = after.scale.values == before.scale.values
    assert torch.equal(kept, ~too_large) or rounding == "compensated"  # later groups take over what earlier ones leave
    whole = kept.all(1)
    assert torch.equal(after.codes.values[whole], before.codes.values[whole])
    assert bool((after.scale.values[too_large & ~kept] > before.scale.values[too_large & ~kept]).all())


def test_a_range_is_widened_by_what_is_missing() -> None:
    """One pair of the largest weights: its sum is 2 x 127, so that the step becomes 254 / 128 times as long."""
    weight = torch.full((1, 64), 0.001)
    weight[0, :2] = 1.0
    before, after = (
        Int8Quantisation().pack(weight, Int8(accumulator=accumulator))  # type: ignore[arg-type]
        for accumulator in (32, 16)
    )
    assert int(before.codes.values[0, 0]) == 255
    assert int(after.codes.values[0, 0]) - 128 in (63, 64)
    ratio = float(after.scale.values / before.scale.values)
    assert 254 / 128 <= ratio <= 1.02 * 254 / 128


@pytest.mark.parametrize("bits", range(2, 7))
def test_few_bits_always_fit(bits: int) -> None:
    weight = drawn(8, 64)
    point = Uniform(bits=bits, group="row", symmetric=True)
    before, after = (METHOD.pack(weight, p) for p in (point, point.model_copy(update={"accumulator": 16})))
    assert torch.equal(before.codes.values, after.codes.values)
    assert torch.equal(before.dense(), after.dense())


def test_a_matrix_of_zeros() -> None:
    point = Uniform(bits=8, group="row", symmetric=True, accumulator=16)
    assert not METHOD.pack(torch.zeros(3, 40), point).dense().any()


def test_levels_with_a_zero_point_are_refused() -> None:
    for refusal in (
        METHOD.refuse((4, 64), Uniform(symmetric=False, accumulator=16)),
        Int8Quantisation().refuse((4, 64), Int8(symmetric=False, accumulator=16)),
    ):
        assert refusal is not None
        assert "symmetric = true" in refusal.reason
    assert METHOD.refuse((4, 64), Uniform(symmetric=True, accumulator=16)) is None
