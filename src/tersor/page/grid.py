"""Bits per weight, layer by layer: what a table shows at a glance."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from tersor.page.facts import Row

MATRICES = ("linear", "embedding", "recurrent")


@dataclass(frozen=True)
class Cell:
    """A layer's weights of one role: mean bits per weight, and `mark`, the strength of the colour from 0 to 100."""

    bits: float
    text: str
    title: str
    mark: int


@dataclass(frozen=True)
class Grid:
    """`columns` are roles, in families of (name, how many columns); `rows` are layers with a cell per column."""

    families: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def layer_of(path: str) -> str | None:
    """The layer that a path is in, by its first number.

    >>> layer_of("encoder.layer.3.attention.self.query"), layer_of("pooler.dense"), layer_of("rnn.weight_ih_l1")
    ('3', None, '1')
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path) or re.search(r"_l(\d+)(?:_|$)", path)
    return found[1] if found else None


def grid(rows: Iterable[Row]) -> Grid | None:
    """None for fewer than two layers: the table of weights says it all."""
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        layer = layer_of(row.site.path)
        if row.site.kind in MATRICES and layer is not None:
            cells[layer, row.site.role].append(row)
    layers = sorted({layer for layer, _ in cells}, key=int)
    seen = list(dict.fromkeys(role for _, role in cells))
    order = list(dict.fromkeys(_family(role) for role in seen))
    roles = sorted(seen, key=lambda role: order.index(_family(role)))
    if len(layers) < 2:
        return None
    families = tuple((name, len(list(group))) for name, group in groupby(map(_family, roles)))
    made = tuple(
        (layer, tuple(_cell(cells[layer, role]) if (layer, role) in cells else None for role in roles))
        for layer in layers
    )
    return Grid(families, tuple(role.partition(".")[2] or role for role in roles), made)


def _family(role: str) -> str:
    return role.partition(".")[0]


def _cell(rows: list[Row]) -> Cell:
    bits = fmean(row.form.bits for row in rows)
    title = "; ".join(f"{row.site.path}: {row.site.choice}, {row.form.bits:.2f} bits" for row in rows)
    return Cell(bits, f"{bits:.1f}", title, round(min(bits, 8.0) / 8 * 100))
