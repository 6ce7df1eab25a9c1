"""Linear layers, shape by tokens: per cent of what this processor can do, and the ratio to the best peer.

    python -m tests.benchmarks.bench_linears [--tokens 1 8 32 128 512] [--threads 1 2] [--large] [--out FOLDER]

All contenders of a row are timed in turns in one process, after the ceilings of the machine. A call computes COPIES
products, each with weights and an input of its own, as a model does, with inputs and outputs that are bound beforehand
where a runtime can do that; times are those of one. The limit of a row is
max(operations / peak, bytes of the weights / read bandwidth at as many bytes as a call reads), the peak being that of
codes of as many bits. A ratio is the time of the best peer of 4 bits, or of more (whatever its grouping) over ours, by
least and by median times: above 1 we are faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tests.benchmarks import ceilings, ours
from tests.benchmarks.ceilings import Ceilings
from tests.benchmarks.contender import COPIES, Linear, cosine
from tests.benchmarks.peers.present import Present, present
from tests.benchmarks.tables import markdown, write

from tersor.interleave import interleaved

SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (768, 3072))  # outputs, inputs
LARGE = (4096, 4096)
TOKENS = (1, 8, 32, 128, 512)
SLICE = 1e-3  # seconds of one turn: long against the clock, short against a disturbance
FAITHFUL = 0.98  # cosine to float32 of 4 bits a row on Gaussian weights; a contender below it computes something else


@dataclass(frozen=True)
class Row:
    """One contender on one shape. `limit` in seconds; `cosine` to float32."""

    outputs: int
    inputs: int
    tokens: int
    threads: int
    name: str
    bits: int
    least: float
    median: float
    limit: float
    cosine: float

    @property
    def own(self) -> bool:
        return self.name.startswith("tersor")


@torch.inference_mode()
def measured(shape: tuple[int, int], tokens: int, limits: Ceilings, peers: Present, seconds: float) -> list[Row]:
    """Every contender on one shape, on the threads of `limits`."""
    threads = limits.threads
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    weight, x = (random.standard_normal(size, np.float32) for size in (shape, (tokens, shape[1])))
    contenders: dict[str, Linear] = dict(ours.linears(weight, x))
    for peer in peers.modules:
        contenders.update(peer.linears(weight, x, threads))
    exact = x @ weight.T
    close = {name: cosine(c.run(), exact) for name, c in contenders.items()}
    wrong = [f"{name}: {close[name]:.3f}" for name in contenders if not close[name] > FAITHFUL]
    if wrong:
        raise RuntimeError(f"not the product of {shape}: {wrong}")
    times = interleaved({name: c.run for name, c in contenders.items()}, seconds=seconds, slice_seconds=SLICE)
    rows = []
    for name, c in contenders.items():
        limit = limits.limit(2.0 * tokens * weight.size * COPIES, c.size * COPIES, c.summed or c.bits) / COPIES
        least, middle = min(times[name]) / COPIES, median(times[name]) / COPIES
        rows.append(Row(*shape, tokens, threads, name, c.bits, least, middle, limit, close[name]))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line for each of our contenders, beside the best peer of its width."""
    cells: dict[tuple[int, int, int, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.threads, row.outputs, row.inputs, row.tokens), []).append(row)
    lines = []
    for (threads, outputs, inputs, tokens), cell in cells.items():
        for row in (r for r in cell if r.own):
            rivals = [r for r in cell if not r.own and r.bits == (8 if 4 < row.bits < 8 else row.bits)]
            lines.append([
                f"{outputs}x{inputs}", tokens, threads, row.name.removeprefix("tersor "), f"{row.least * 1e6:.1f}",
                f"{row.median * 1e6:.1f}", f"{row.limit / row.least:.0%}", *_against(row, rivals),
            ])  # fmt: skip
    heads = ("outputs x inputs", "tokens", "threads", "ours", "least us", "median us", "of the limit", "best peer", "x")
    return markdown((*heads, "x by median"), lines)


def _against(row: Row, rivals: Sequence[Row]) -> list[str]:
    if not rivals:
        return ["none present", "-", "-"]
    best = min(rivals, key=lambda r: r.least)
    by_median = min(r.median for r in rivals) / row.median
    return [f"{best.name}, {best.least * 1e6:.1f} us", f"{best.least / row.least:.2f}", f"{by_median:.2f}"]


def shape(text: str) -> tuple[int, int]:
    outputs, inputs = text.split("x")
    return int(outputs), int(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="OUTPUTSxINPUTS")
    parser.add_argument("--large", action="store_true", help="a matrix of 4096 x 4096 too")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each contender of a row")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of linears.md and linears.json")
    given = parser.parse_args()
    peers = present()
    print(peers)
    limits = {threads: ceilings.measure(threads) for threads in given.threads}
    print(ceilings.table(list(limits.values())))
    rows: list[Row] = []
    for threads in given.threads:
        for size in (*given.shapes, *([LARGE] if given.large else [])):
            for tokens in given.tokens:
                rows += measured(size, tokens, limits[threads], peers, given.seconds)
                print(f"{size[0]}x{size[1]}, {tokens} tokens, {threads} threads", flush=True)
                _leave(given.out, peers, limits, rows)  # a long run that is cut short has left something
    print("\n" + table(rows))


def _leave(folder: Path, peers: Present, limits: Mapping[int, Ceilings], rows: Sequence[Row]) -> None:
    found = list(limits.values())
    content = {
        "peers": peers.versions,
        "absent": peers.absent,
        "ceilings": [asdict(c) for c in found],
        "rows": [asdict(r) for r in rows],
    }
    write(folder, "linears", "\n\n".join([str(peers), ceilings.table(found), table(rows)]), content)


if __name__ == "__main__":
    main()
