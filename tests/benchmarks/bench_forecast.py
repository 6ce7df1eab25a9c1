"""How well the time of a whole model is predicted: plans of several sizes, each predicted before it is measured.

    python -m tests.benchmarks.bench_forecast [--models minilm bert lstm gru] [--threads 1] [--out FOLDER]

A model is searched once at the first size, whose artifacts teach what the rest of the graph takes; then other sizes are
planned from the same measurements. The error is that of each first prediction, before its own artifact corrects it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tests.benchmarks.contender import Subject
from tests.benchmarks.subjects import SUBJECTS
from tests.benchmarks.tables import markdown, write

import tersor


@dataclass(frozen=True)
class Row:
    """Seconds of one call, as predicted and as the saved artifact took."""

    model: str
    shape: str
    bytes: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def rows(subject: Subject, shares: Sequence[float], threads: int) -> Iterator[Row]:
    """One row a size: a share of what the original's parameters take."""
    example = {name: torch.from_numpy(value) for name, value in subject.example.items()}
    size = sum(p.numel() * p.element_size() for p in subject.module.parameters())
    for batch, tokens in subject.shapes[:2]:
        shape = f"batch = {batch}, tokens = {tokens}, threads = {threads}"
        latency = f"100 s at {shape}"  # holds whatever is chosen: only its prediction is of interest
        first: tersor.Found | None = None
        for share in shares:
            asked = {"size": f"{round(share * size)} B", "latency": latency}
            if first is None:
                first = tersor.search(subject.module, example, **asked)
                continue
            (contender, *_) = first.again(**asked).report.contenders
            (name,) = (name for name in contender.measured if name.startswith("latency"))
            yield Row(subject.name, shape, contender.bytes, contender.predicted[name], contender.measured[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=["minilm", "bert", "lstm"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.15, 0.1, 0.12, 0.2, 0.24], help="of the original")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of forecast.md and forecast.json")
    given = parser.parse_args()
    found: list[Row] = []
    for name in given.models:
        for row in rows(SUBJECTS[name](), given.shares, given.threads):
            found.append(row)
            print(
                f"{row.model:15} {row.shape} {row.bytes:12,} bytes: predicted {row.predicted * 1e3:8.3f} ms, measured "
                f"{row.measured * 1e3:8.3f} ms, {row.error:+.1%}",
                flush=True,
            )
    table = markdown(
        ("model", "shape", "bytes", "predicted ms", "measured ms", "error"),
        [
            (r.model, r.shape, f"{r.bytes:,}", f"{r.predicted * 1e3:.3f}", f"{r.measured * 1e3:.3f}", f"{r.error:+.1%}")
            for r in found
        ],
    )
    write(given.out, "forecast", table, {"rows": [asdict(r) | {"error": r.error} for r in found]})


if __name__ == "__main__":
    main()
