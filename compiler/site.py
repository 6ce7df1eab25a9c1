"""A site: one thing in the model that can be rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Kind = Literal["linear", "embedding", "recurrent", "norm", "bias", "attention", "other"]
KINDS: tuple[Kind, ...] = ("linear", "embedding", "recurrent", "norm", "bias", "attention", "other")


@dataclass(frozen=True)
class Reader:
    """One use of a weight: a call of the module at `path` (the `call`-th of that path in execution order)."""

    path: str
    call: int = 0


@dataclass(frozen=True)
class Site:
    """A parameter with all its readers (tied readers are one site), or an attention core.

    `name` is the key: the parameter's fully qualified name (the first alias met), or the module path of an attention
    core. `paths` are the module paths a policy may select it by: every alias of the owning module
    (`encoder.layer.0.attention.self.query`), and the parameter's own name where one module has several weights
    (`rnn.weight_ih_l0`, `fc.bias`). `shape` is (out, in) for `linear`, (rows, width) for `embedding`, (gates x
    hidden, in) for `recurrent`; `dtype` is the stored type, `bytes` its size in the original.
    """

    name: str
    kind: Kind
    role: str
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    readers: tuple[Reader, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def params(self) -> int:
        return prod(self.shape)
