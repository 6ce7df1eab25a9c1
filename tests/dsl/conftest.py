"""Small methods for the tests of the language: what matters is their parameters, none of them compresses anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field, model_validator

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.policy import Policy
from tersor.compiler.stores.base import Store
from tersor.dsl import parse_policy


class Uniform(Params):
    bits: int = Field(ge=1, le=8)
    group: int | Literal["row", "tensor"] = "row"
    symmetric: bool = False

    @model_validator(mode="after")
    def _whole_tensor(self) -> Uniform:
        if self.bits == 1 and self.group == "tensor":
            raise ValueError("one bit needs groups or rows")
        return self


class Codes(Params):
    bits: int = Field(ge=1, le=12)
    seed: int = 0


class Rank(Params):
    rank: float = Field(gt=0, le=1)


class Keep(Params):
    keep: float = Field(gt=0, le=1)
    block: int = Field(default=1, multiple_of=2, ge=2)


class Nothing(Params):
    pass


class Soft(Params):
    temperature: float = Field(default=1.0, gt=0)


class Fake(Method[Any]):
    title = "a method for tests"
    source = "tests"
    kinds: ClassVar[frozenset[Any]] = frozenset({"linear"})

    def refuse(self, shape: tuple[int, ...], point: Any) -> Refusal | None:
        return None

    def pack(self, tensor: torch.Tensor, point: Any, context: Context = Context()) -> Store:
        raise NotImplementedError

    def examples(self) -> tuple[Any, ...]:
        return ()


PARAMS: dict[str, type[Params]] = {
    "quant.uniform": Uniform,
    "quant.kmeans.static": Codes,
    "quant.half": Nothing,
    "decomp.svd": Rank,
    "prune.magnitude": Keep,
    "prune.block.magnitude": Keep,
    "prune.structure.sensitivity": Rank,
    "kd.soft_targets": Soft,
}


@pytest.fixture(scope="session")
def methods() -> Mapping[str, Method[Any]]:
    return {i: type("Fake", (Fake,), {"id": i, "Params": params})() for i, params in PARAMS.items()}


@pytest.fixture(scope="session")
def parse(methods: Mapping[str, Method[Any]]) -> Callable[..., Policy]:
    """`parse(text)` with the methods above, and two ids of a catalogue that are not among them."""

    def parsed(text: str, name: str = "policy.tersor") -> Policy:
        return parse_policy(text, methods, name=name, catalogue=("quant.pq", "prune.obd"))

    return parsed


@pytest.fixture(scope="session")
def example() -> str:
    """The policy of the README, whole."""
    return (Path(__file__).parent / "cpu.tersor").read_text(encoding="utf-8")
