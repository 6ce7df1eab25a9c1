"""Bags of embeddings are captured as embeddings whose rows are summed or averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.compiler.capture import capture

ROWS = 50


class Bags(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bag, self.head = nn.EmbeddingBag(ROWS, 12, **options), nn.Linear(12, 5)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        y: Tensor = self.head(self.bag(ids, offsets))
        return y


class Weighted(Bags):
    """Every row has a weight that was learned."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mode="sum", **options)
        self.importance = nn.Embedding(ROWS, 1)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        y: Tensor = self.head(self.bag(ids, offsets, self.importance(ids).squeeze(-1)))
        return y


MODELS = {
    "sum": lambda: Bags(mode="sum"),
    "mean": lambda: Bags(mode="mean"),
    "sum padded": lambda: Bags(mode="sum", padding_idx=2),
    "mean padded": lambda: Bags(mode="mean", padding_idx=2),
    "weighted": Weighted,
    "weighted padded": lambda: Weighted(padding_idx=2),
}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # sums of a few rows in another order


@pytest.mark.parametrize("name", MODELS)
def test_bags_of_equal_length(name: str) -> None:
    model = MODELS[name]()
    program = capture(model, {"ids": torch.randint(0, ROWS, (3, 7))})
    site = next(s for s in program.sites if s.name == "bag.weight")
    assert (site.kind, site.role, site.shape) == ("embedding", "embedding.token", (ROWS, 12))
    assert isinstance(program.module.get_submodule("bag"), nn.Embedding)
    for shape in ((3, 7), (1, 1), (5, 2)):
        ids = torch.randint(0, ROWS, shape)
        ids[0] = 2  # where rows are left out, a bag of nothing
        close(program.callable()(ids=ids), model(ids))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("last", [False, True])
def test_bags_between_offsets(name: str, last: bool) -> None:
    model = MODELS[name]()
    model.bag.include_last_offset = last
    if last and "padded" in name:
        pytest.skip("torch itself reads beyond the offsets there")
    example = {"ids": torch.randint(0, ROWS, (21,)), "offsets": torch.tensor([0, 4, 9, 21])}
    program = capture(model, example)
    site = next(s for s in program.sites if s.name == "bag.weight")
    assert (site.kind, len(site.readers)) == ("embedding", 1)
    for ids, offsets in (([2, 2, 5, 7, 9], [0, 2, 2, 5]), ([4], [0, 1])):
        given = {"ids": torch.tensor(ids), "offsets": torch.tensor(offsets)}
        close(program.callable()(**given), model(**given))


def test_gradients_are_those_of_the_bag() -> None:
    model = Bags(mode="mean", padding_idx=2)
    ids = torch.randint(0, ROWS, (4, 6))
    program = capture(model, {"ids": ids})
    ours = program.callable()
    for module in (model, ours):
        module.zero_grad()
        module(ids=ids).square().sum().backward()
    found = program.module.get_submodule("bag").weight.grad
    close(found, model.bag.weight.grad)


def test_a_maximum_stays_an_operator() -> None:
    program = capture(Bags(mode="max"), {"ids": torch.randint(0, ROWS, (3, 7))})
    assert next(s for s in program.sites if s.name == "bag.weight").kind == "other"
