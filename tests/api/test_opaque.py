"""Opaque leaves: kept as they are, counted, stored, and given back by the caller when the artifact is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor


class Packed(nn.Module):
    """What torch.export cannot see through: packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 24, batch_first=True)
        self.register_buffer("gain", torch.rand(24) + 1, persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return padded * self.gain


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.packed, self.out = nn.Embedding(100, 16), Packed(), nn.Linear(24, 3)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.packed(self.embed(input_ids), lengths).max(1).values)


EXAMPLE = {"input_ids": torch.randint(1, 100, (3, 9)), "lengths": torch.tensor([9, 4, 6])}


def test_a_model_with_an_opaque_leaf_compiles_saves_and_loads(tmp_path: Path) -> None:
    model = Classifier().eval()
    policy = tersor.Policy.parse("for linear or embedding choose uniform(bits = 8, group = row)")
    result = tersor.compile(model, policy, EXAMPLE, opaque=["packed"])
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert result.plan.original_bytes == parameters
    assert result.plan.bytes > sum(p.numel() * 4 for p in model.packed.parameters())
    result.save(tmp_path / "out")
    loaded = tersor.load(tmp_path / "out", "eager", opaque={"packed": Packed()})
    with torch.no_grad():
        expected = result.reference(**EXAMPLE)
        assert torch.equal(loaded(**EXAMPLE), expected)
        assert torch.allclose(expected, model(**EXAMPLE), atol=0.05)
        assert not torch.equal(expected, model(**EXAMPLE))


def test_loading_without_the_module_says_what_is_missing(tmp_path: Path) -> None:
    result = tersor.compile(Classifier().eval(), tersor.Policy.parse("keep linear"), EXAMPLE, opaque=["packed"])
    result.save(tmp_path / "out")
    with pytest.raises(tersor.ArtifactError, match=r"`packed` is an opaque leaf, a Packed .* opaque="):
        tersor.load(tmp_path / "out")
    with pytest.raises(tersor.ArtifactError, match=r"but .* is stored for it"):
        tersor.load(tmp_path / "out", opaque={"packed": nn.Linear(2, 2)})
