"""The step of attention in 16-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.backends.numba.attention16 import WIDEST, Attention16Spec
from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.steps import Step, attention_tile


@dataclass(frozen=True)
class AttentionShape:
    """`batch` sentences of `queries` tokens that look at `keys` tokens; `shared` of the `heads` read the same keys and
    values, of which there are heads / shared.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    width: int
    shared: int = 1


@dataclass(frozen=True)
class Rows:
    """Heads of every token side by side: the address, the bytes between tokens and between sentences."""

    address: Operand
    token: int
    sentence: int


def takes_width(level: str, width: int) -> bool:
    """Whether heads of this width are whole tiles and their sums stay exact."""
    return width % attention_tile(level) == 0 and width <= WIDEST


def attention16_step(
    level: str,
    shape: AttentionShape,
    parts: Sequence[Rows],
    scale: Operand,
    mask: Operand = 0,
    mask_stride: int = 0,
    causal: bool = False,
) -> Step:
    """y = softmax(scale q k^T + mask) v for `parts` q, k, v and y. `scale` is the address of a float, `mask` that of a
    float to be added for every (sentence, key, query up to a multiple of `attention_tile`), `mask_stride` the bytes
    between sentences of it.

    `causal`: the last query sees all keys, the one before it one less, and so on. Keys that no query of a tile sees are
    not read. The result's bound is in `attention16`; a query that sees nothing gets 0.
    """
    tile = attention_tile(level)
    even = ceil_to(shape.keys, 2)
    work = 8 * shape.width + 2 * (shape.keys + even) * shape.width
    work += 4 * tile * (shape.width * 3 // 2 + 2 + even + 1 + even // 2)
    counts = (shape.queries, shape.keys, shape.heads, shape.shared, shape.width)
    places = (*[p.address for p in parts], *[p.token for p in parts], *[p.sentence for p in parts])
    operands = (*counts, *places, mask, mask_stride, scale, int(causal))
    cost = shape.shared * shape.keys * ceil_to(shape.queries, tile) * (shape.width / 40 + 0.3) + 1000
    units = shape.batch * shape.heads // shape.shared
    kernel = kernel_address(Attention16Spec(level), "glue_attention16")
    return Step("attention", kernel, operands, units, cost, work)
