"""Whole models against other runtimes: milliseconds of a call, and the cosine to float32.

    python -m tests.benchmarks.bench_models [--models minilm bert lstm gru] [--threads 1 2] [--out FOLDER]

All contenders of a model are timed in turns in one process. A ratio is the time of the fastest peer over ours, by least
and by median times: above 1 we are faster. The cosine is the mean and the least over inputs of the kind the model is
used on (STS-B dev sentences for the encoders); those that a peer calibrates on are others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from tests.benchmarks import ours
from tests.benchmarks.contender import Model, Subject, cosine
from tests.benchmarks.peers.present import Present, present
from tests.benchmarks.peers.torch import of_module
from tests.benchmarks.subjects import SUBJECTS
from tests.benchmarks.tables import markdown, write

from tersor.interleave import interleaved

SLICE = 3e-3  # seconds of one turn
# What converters of the peers raise when a model is not for them.
FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, NotImplementedError)


@dataclass(frozen=True)
class Row:
    """One contender on one shape; seconds; cosines to float32."""

    model: str
    batch: int
    tokens: int
    threads: int
    name: str
    least: float
    median: float
    cosine: float
    cosine_least: float

    @property
    def own(self) -> bool:
        return self.name.startswith("tersor")


def measured(
    subject: Subject, peers: Present, threads: Sequence[int], seconds: float, failures: list[str]
) -> list[Row]:
    """Every contender on every shape. What a peer cannot do is added to `failures`."""
    exact = of_module(subject.module, list(subject.example))
    mine = dict(ours.models(subject))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        ready = []
        for peer in peers.modules:
            home = Path(folder) / peer.__name__
            home.mkdir()
            try:
                peer.prepare(subject, home)
                ready.append((peer, home))
            except FAILURES as problem:
                failures.append(f"{subject.name}: {peer.__name__} failed: {problem}")
        with torch.inference_mode():
            for count in threads:
                torch.set_num_threads(count)
                contenders = {**mine}
                for peer, home in ready:
                    contenders.update(peer.models(subject, home, count))
                rows += _timed(subject, contenders, exact, count, seconds)
    return rows


def _timed(
    subject: Subject, contenders: Mapping[str, Model], exact: Model, threads: int, seconds: float
) -> Iterator[Row]:
    close = {name: _fidelity(subject, exact, run) for name, run in contenders.items()}
    for batch, tokens in subject.shapes:
        inputs = subject.sized(batch, tokens)
        times = interleaved(
            {name: partial(run, inputs) for name, run in contenders.items()}, seconds=seconds, slice_seconds=SLICE
        )
        for name, found in times.items():
            yield Row(subject.name, batch, tokens, threads, name, min(found), median(found), *close[name])


def _fidelity(subject: Subject, exact: Model, run: Model) -> tuple[float, float]:
    found = [cosine(subject.meaning(run(x)), subject.meaning(exact(x))) for x in subject.judged]
    return fmean(found), min(found)


def table(rows: Sequence[Row]) -> str:
    cells: dict[tuple[str, int, int, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.model, row.batch, row.tokens, row.threads), []).append(row)
    lines = []
    for (model, batch, tokens, threads), cell in cells.items():
        rivals = [r for r in cell if not r.own]
        best, by_median = min(r.least for r in rivals), min(r.median for r in rivals)
        for row in cell:
            lines.append([
                model, f"{batch}x{tokens}", threads, f"**{row.name}**" if row.own else row.name,
                f"{row.least * 1e3:.2f}", f"{row.median * 1e3:.2f}", f"{best / row.least:.2f}",
                f"{by_median / row.median:.2f}", f"{row.cosine:.5f}", f"{row.cosine_least:.5f}",
            ])  # fmt: skip
    heads = ("model", "batch x tokens", "threads", "runtime", "least ms", "median ms", "best peer / this")
    return markdown((*heads, "by median", "cosine, mean", "least"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.5, help="for each contender of a row")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of models.md and models.json")
    given = parser.parse_args()
    peers = present()
    print(peers)
    rows: list[Row] = []
    failures: list[str] = []
    for name in given.models:
        rows += measured(SUBJECTS[name](), peers, given.threads, given.seconds, failures)
        text = "\n\n".join([str(peers), table(rows), *failures])
        held = {
            "peers": peers.versions,
            "absent": peers.absent,
            "failures": failures,
            "rows": [asdict(r) for r in rows],
        }
        write(given.out, "models", text, held)
        print(f"{name}: done", flush=True)
    print("\n".join(["", table(rows), *failures]))


if __name__ == "__main__":
    main()
