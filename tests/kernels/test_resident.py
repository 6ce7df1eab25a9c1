"""A loaded model holds its packed weights and no other copy of them."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from torch import Tensor, nn

import tersor

WIDTH, ROWS = 512, 4000


class Tied(nn.Module):
    """A table that is looked up and multiplied with, and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.down(torch.relu(self.up(self.table(ids)))))
        return logits


def alive() -> dict[int, int]:
    """Bytes of the storage of every tensor there is, by its address."""
    gc.collect()
    found = (
        x.untyped_storage() for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"
    )
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_no_dense_copy_is_kept(tmp_path: Path) -> None:
    """4 bits and a scale of 32 bits for 64 of them are 0.5625 bytes a parameter, for rows and for panels of the table;
    codes of a byte would make it more than 1, floats more than 2."""
    model, ids = Tied().eval(), torch.arange(20).view(2, 10)
    policy = tersor.Policy.parse("for linear or embedding choose uniform(bits = 4, group = 64)")
    tersor.compile(model, policy, {"ids": ids}, backend="eager").save(tmp_path / "out")
    parameters = sum(p.numel() for p in model.parameters()) + ROWS * WIDTH  # the table in both orders
    del model
    before = alive()
    module = tersor.load(tmp_path / "out", "numba")
    with torch.inference_mode():
        logits = module(ids)
    assert logits.shape == (2, 10, ROWS)
    del logits
    held = sum(size for place, size in alive().items() if place not in before)
    assert 0.5 * parameters < held < parameters
