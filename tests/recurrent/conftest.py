"""Small recurrent models compiled with every kind of store."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from tests.zoo import VOCAB, ZOO, Example, ids
from torch import Tensor, nn

import tersor
from tersor.api import build
from tersor.compiler.program import Program
from tersor.compiler.stores import Store
from tersor.optimise import Settings
from tersor.original import captured

STORES = {
    "affine": "uniform(bits = 4, group = row)",
    "affine symmetric": "uniform(bits = 8, group = row, symmetric = true)",
    "codebook": "kmeans.static(bits = 3)",
    "sparse": "prune.magnitude(sparsity = 60%)",
    "sparse codes": "prune.magnitude(sparsity = 60%) then kmeans.static(bits = 3)",
    "chain": "svd(rank = 25%)",
    "chain of codes": "svd(rank = 25%) then uniform(bits = 6, group = row)",
    "half": "half()",
}
MODELS = ("lstm_lm", "gru_lm", "rnn_lm", "bilstm", "stateful")
SHAPES = ((1, 1), (2, 10), (3, 17))


class Stateful(nn.Module):
    """Takes the state (batch, width) it starts from, and gives back the one it reached."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.rnn = nn.LSTM(16, 12)  # time-major
        self.head = nn.Linear(12, VOCAB)

    def forward(self, input_ids: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(self.embed(input_ids).transpose(0, 1), (h.unsqueeze(0), c.unsqueeze(0)))
        return self.head(y.transpose(0, 1)), h[0], c[0]


def model_of(name: str) -> nn.Module:
    if name != "stateful":
        return ZOO[name]()[0]
    torch.manual_seed(0)
    return Stateful().eval()


def example_of(name: str, batch: int, length: int) -> Example:
    tokens = {"input_ids": ids(batch, length)}
    if name != "stateful":
        return tokens
    generator = torch.Generator().manual_seed(length)
    return tokens | {state: 0.5 * torch.randn(batch, 12, generator=generator) for state in ("h", "c")}


@dataclass(frozen=True)
class Compiled:
    """A compiled model, and the original with every weight replaced by the one its store stands for."""

    name: str
    result: tersor.Result
    replaced: nn.Module

    @property
    def stores(self) -> dict[str, Store]:
        return dict(self.result.planned.stores)


def tensors(output: object) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [t for part in parts for t in tensors(part)]  # type: ignore[attr-defined]


@functools.cache
def program_of(name: str) -> Program:
    return captured(model_of(name), example_of(name, 2, 10))


def compile_recurrent(name: str, method: str) -> Compiled:
    """Results share nothing but the captured program, which no compilation changes."""
    policy = tersor.Policy.parse(f"for recurrent choose {method}\n")
    result = build(program_of(name), policy, None, (), Settings(backend="eager"))
    replaced = copy.deepcopy(model_of(name))
    with torch.no_grad():
        for parameter, values in replaced.named_parameters():
            values.copy_(result.planned.stores[parameter].dense())
    return Compiled(name, result, replaced)


@functools.cache
def _kept(name: str, store: str) -> Compiled:
    return compile_recurrent(name, STORES[store])


@pytest.fixture(params=MODELS)
def model_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STORES)
def compiled(model_name: str, request: pytest.FixtureRequest) -> Compiled:
    """Every model with every store; not to be changed."""
    return _kept(model_name, request.param)
