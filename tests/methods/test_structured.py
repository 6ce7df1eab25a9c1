"""Block and bank pruning against counting, trying every mask, and closed forms."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from tersor.compiler.method import Context, Refusal
from tersor.passes.prune.bank import Bank, BankPruning
from tersor.passes.prune.block import Block, BlockPruning
from tersor.passes.prune.magnitude import Magnitude, MagnitudePruning
from tersor.passes.prune.saliency import surgeon

BLOCK, BANK = BlockPruning(), BankPruning()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def form_of(columns: int, seed: int = 0) -> Tensor:
    """A form with strong correlations: its eigenvalues fall by four decades."""
    turn = torch.linalg.qr(drawn(columns, columns, seed=seed)).Q
    return turn @ torch.logspace(0, -4, columns).diag() @ turn.T


@pytest.mark.parametrize("block", ["16x4", "32x4", "16x1"])
@pytest.mark.parametrize("shape", [(64, 96), (33, 70), (1, 5), (100, 1)])
@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
def test_whole_blocks_go_and_as_many_in_every_row(block: str, shape: tuple[int, int], sparsity: float) -> None:
    weight = drawn(*shape)
    height, width = map(int, block.split("x"))
    left = BLOCK.pack(weight, Block(sparsity=sparsity, block=block)).dense()  # type: ignore[arg-type]
    blocks = -(-shape[1] // width)
    for top in range(0, shape[0], height):
        gone = []
        norms = []
        for at in range(0, shape[1], width):
            piece = left[top : top + height, at : at + width]
            whole = weight[top : top + height, at : at + width]
            assert torch.equal(piece, whole) or not piece.any()
            gone.append(not bool(piece.any()))
            norms.append(float(whole.double().square().sum()))
        assert sum(gone) == int(sparsity * 100 + 0.5) * blocks // 100
        dropped = [n for n, g in zip(norms, gone, strict=True) if g]
        if dropped:
            assert max(dropped) <= min(n for n, g in zip(norms, gone, strict=True) if not g) * (1 + 1e-6)


def test_the_largest_weight_decides_where_asked() -> None:
    weight = torch.full((16, 8), 0.5)
    weight[:, 4:] = 0.1
    weight[3, 5] = 1.0  # the smaller norm, the larger peak
    for score, kept in (("norm", 0), ("max", 4)):
        left = BLOCK.pack(weight, Block(score=score)).dense()  # type: ignore[arg-type]
        assert torch.equal(left[:, kept : kept + 4], weight[:, kept : kept + 4])
        assert int((left != 0).sum()) == 64


@pytest.mark.parametrize(("kept", "bank"), [(4, 16), (8, 64), (2, 4), (1, 2), (3, 7)])
@pytest.mark.parametrize("columns", [64, 70, 3])
def test_every_bank_keeps_its_largest(kept: int, bank: int, columns: int) -> None:
    weight = drawn(9, columns)
    left = BANK.pack(weight, Bank(kept=kept, bank=bank)).dense()
    for row, whole in zip(left, weight, strict=True):
        for part, all_of_it in zip(row.split(bank), whole.split(bank), strict=True):
            assert int((part != 0).sum()) == min(kept, len(part))
            assert torch.equal(part[part != 0].abs().sort().values, all_of_it.abs().sort().values[-kept:])


def test_a_bank_as_wide_as_the_row_is_the_best_of_the_row() -> None:
    weight = drawn(1, 32)
    left = BANK.pack(weight, Bank(kept=8, bank=32)).dense()
    assert torch.equal(left, MagnitudePruning().pack(weight, Magnitude(sparsity=0.75)).dense())


def test_banks_keep_less_than_no_structure_and_more_than_blocks() -> None:
    weight = drawn(128, 256)
    kept = [
        float(store.dense().square().sum())
        for store in (
            MagnitudePruning().pack(weight, Magnitude(sparsity=0.75)),
            BANK.pack(weight, Bank(kept=4, bank=16)),
            BLOCK.pack(weight, Block(sparsity=0.75)),
        )
    ]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("dropped", range(6))
def test_one_weight_dropped_is_the_constrained_minimum(dropped: int) -> None:
    """min (v - w)^T H (v - w) with v_j = 0, among columns from j on, solved directly in float64."""
    form = form_of(6)
    damped = form.double() + 0.01 * form.double().diagonal().mean() * torch.eye(6, dtype=torch.float64)
    weight = drawn(3, 6, seed=5)

    def choose(scores: Tensor) -> Tensor:
        inverse = damped.inverse().diagonal()
        torch.testing.assert_close(scores, (weight.double().square() / inverse).float(), rtol=1e-3, atol=1e-5)
        keep = torch.ones(scores.shape, dtype=torch.bool)
        keep[:, dropped] = False
        return keep

    found, keep = surgeon(weight, form, 6, choose)
    assert bool((found[:, dropped] == 0).all())
    assert int(keep.sum()) == 15
    after = list(range(dropped + 1, 6))
    expected = weight.double().clone()
    expected[:, dropped] = 0
    if after:
        inner = damped[after][:, after]
        expected[:, after] += weight.double()[:, [dropped]] * torch.linalg.solve(inner, damped[after][:, [dropped]]).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["block", "bank"])
def test_curvature_does_less_damage(method: str) -> None:
    """In the form that it was given, by a clear margin; and as many weights go."""
    weight, form = drawn(64, 96), form_of(96)
    if method == "block":
        stores = [BLOCK.pack(weight, Block(score=s), Context(form=form)) for s in ("norm", "curvature")]  # type: ignore[arg-type]
    else:
        stores = [BANK.pack(weight, Bank(score=s), Context(form=form)) for s in ("magnitude", "curvature")]  # type: ignore[arg-type]
    plain, better = (float(((d @ form) * d).sum()) for d in (store.dense() - weight for store in stores))
    assert better < 0.7 * plain
    assert stores[0].values.shape == stores[1].values.shape
    assert stores[0].nbytes() >= 0.9 * stores[1].nbytes()


def test_curvature_keeps_the_best_pairs_of_a_bank() -> None:
    """With a diagonal form nothing is made up for: every mask of a bank is tried."""
    weight, scales = drawn(5, 8), torch.logspace(-1, 1, 8)
    left = BANK.pack(weight, Bank(kept=2, bank=8, score="curvature"), Context(form=scales.diag())).dense()
    damped = scales.double() + 0.01 * scales.double().mean()
    for row, whole in zip(left, weight, strict=True):
        worth = whole.double().square() * damped
        best = max(combinations(range(8), 2), key=lambda pair: float(worth[list(pair)].sum()))
        assert row.nonzero().flatten().tolist() == list(best)
        assert torch.equal(row[list(best)], whole[list(best)])


def test_without_a_form_curvature_falls_back_to_size() -> None:
    weight = drawn(20, 40)
    assert torch.equal(BLOCK.pack(weight, Block(score="curvature")).dense(), BLOCK.pack(weight, Block()).dense())
    assert torch.equal(BANK.pack(weight, Bank(score="curvature")).dense(), BANK.pack(weight, Bank()).dense())


def test_refusals() -> None:
    assert isinstance(BANK.refuse((4, 64), Bank(kept=17)), Refusal)
    assert isinstance(BLOCK.refuse((4,), Block()), Refusal)
