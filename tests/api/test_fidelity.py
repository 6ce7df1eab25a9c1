"""Fidelity against its definition, on models that are far apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.fidelity import fidelity


class Table(nn.Module):
    """Its outputs are the rows of a table."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"out": self.rows[input_ids]}


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
BATCHES = [{"input_ids": torch.arange(12).reshape(3, 4) + 7 * i, "attention_mask": MASK} for i in range(2)]


def outputs() -> list[tuple[list[Tensor], list[Tensor]]]:
    """For every example, the vectors of the two models at the tokens that count."""
    found = []
    for batch in BATCHES:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = [int(i) for i, m in zip(ids, mask, strict=True) if m]
            ours, theirs = ([model.rows[i].double() for i in kept] for model in (Table(1), Table(2)))
            found.append((ours, theirs))
    return found


def test_logits_are_compared_by_divergence_at_every_token_that_counts() -> None:
    pairs = [(p.softmax(-1), q.softmax(-1)) for ours, theirs in outputs() for p, q in zip(ours, theirs, strict=True)]
    expected = [float((p * (p / q).log()).sum()) for p, q in pairs]
    found = fidelity("logits", Table(1), Table(2), BATCHES, "a test")
    assert found.vectors == len(expected) == 14
    assert found.mean == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.worst == pytest.approx(max(expected), rel=1e-5)
    assert found.agreement == pytest.approx(sum(bool(p.argmax() == q.argmax()) for p, q in pairs) / len(pairs))
    assert "a test" in found.to_text()


def test_embeddings_are_compared_by_the_cosine_of_their_means() -> None:
    expected = [
        1 - float(torch.cosine_similarity(torch.stack(ours).mean(0), torch.stack(theirs).mean(0), dim=0))
        for ours, theirs in outputs()
    ]
    found = fidelity("embedding", Table(1), Table(2), BATCHES, "a test")
    assert found.vectors == len(expected) == 6
    assert found.mean == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.worst == pytest.approx(max(expected), rel=1e-5)
    assert found.agreement is None
    assert f"cosine {1 - found.mean:.5f} mean" in found.to_text()
