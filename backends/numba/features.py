"""CPU levels: which vector width and which dot product a kernel is emitted for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tersor.compiler.errors import RequestError

ENVIRONMENT = "TERSOR_CPU_LEVEL"

Dot = Literal["vpdpbusd", "pmaddwd", "generic"]


@dataclass(frozen=True)
class Level:
    """How kernels are emitted.

    `lanes` 32-bit lanes a vector; a panel is `strips` vectors of outputs; a tile is so many rows by one panel.
    `row_tiles` keeps one integer accumulator per output, `group_tiles` an integer and a floating one. So does
    `short_tiles`, for weights with one scale a row whose products are summed in 16 bits first; where it has more rows,
    the floating ones lie in memory while a group is summed. All descend and end in 1. `products` is about how many
    multiply-adds of bytes a core does in a nanosecond.
    """

    name: str
    lanes: int
    strips: int
    row_tiles: tuple[int, ...]
    group_tiles: tuple[int, ...]
    dot: Dot
    products: float
    needs: frozenset[str]
    short_tiles: tuple[int, ...] = ()

    @property
    def panel(self) -> int:
        """Outputs in a panel."""
        return self.lanes * self.strips

    @property
    def in_pairs(self) -> bool:
        """Whether products of bytes are added in pairs, in 16 bits."""
        return self.dot == "pmaddwd"


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})

# From fast to slow. The tiles fill the 32 (AVX-512) or 16 vector registers.
LEVELS: tuple[Level, ...] = (
    Level("avx512vnni", 16, 4, (6, 4, 2, 1), (3, 2, 1), "vpdpbusd", 200.0, _AVX512 | {"avx512vnni"}),
    Level("avx512", 16, 4, (4, 2, 1), (2, 1), "pmaddwd", 120.0, _AVX512, short_tiles=(2, 1)),
    Level("avxvnni", 8, 2, (5, 2, 1), (2, 1), "vpdpbusd", 100.0, frozenset({"avx2", "fma", "avxvnni"})),
    Level("avx2", 8, 2, (4, 2, 1), (2, 1), "pmaddwd", 80.0, frozenset({"avx2", "fma"}), short_tiles=(4, 2, 1)),
    Level("generic", 4, 2, (2, 1), (2, 1), "generic", 20.0, frozenset()),
)


def level_named(name: str) -> Level:
    """The level called `name`; RequestError if there is none."""
    for level in LEVELS:
        if level.name == name:
            return level
    known = ", ".join(level.name for level in LEVELS)
    raise RequestError(f"no CPU level is called {name!r}; use one of: {known}")


@lru_cache(maxsize=1)
def _host_features() -> frozenset[str]:
    from llvmlite import binding

    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def supported(level: Level) -> bool:
    """Whether this CPU can execute code of `level`.

    AVX-512 VNNI with VL has the 256-bit dot product too (in its EVEX form), so such a CPU also runs `avxvnni`.
    """
    have = _host_features()
    if level.name == "avxvnni" and level_named("avx512vnni").needs <= have:
        return True
    return level.needs <= have


def detect(name: str | None = None) -> Level:
    """The level to use: `name` if given, else the environment variable TERSOR_CPU_LEVEL, else the fastest this CPU
    supports.

    RequestError if a named level is unknown or cannot run on this CPU.
    """
    asked = name or os.environ.get(ENVIRONMENT)
    if asked:
        level = level_named(asked)
        if not supported(level):
            raise RequestError(
                f"this CPU cannot run level {asked!r}; leave {ENVIRONMENT} unset to use what it supports"
            )
        return level
    return next(level for level in LEVELS if supported(level))


def below(level: Level) -> Level | None:
    """The next slower level this CPU supports, None after the last."""
    slower = LEVELS[LEVELS.index(level) + 1 :]
    return next((other for other in slower if supported(other)), None)
