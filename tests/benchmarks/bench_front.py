"""MiniLM under a budget on bytes and one on time that is a share of the fastest int8 peer's, then other sizes from the
same measurements, judged on STS-B dev.

    python -m tests.benchmarks.bench_front [--size 12 18 15 10 9] [--share 0.95] [--threads 1] [--out FOLDER]

The peers' int8 models are timed first, at batch 1 and 128 tokens: the share of the fastest one's least time is the
latency budget of every size. At the end the artifacts and the peers are timed again, in turns. For each size: bytes on
disk, mean and least cosine of the embeddings to the original's, Spearman with the human scores, seconds to find it, and
what every measured artifact was predicted to take and took. No labels are used to find anything. Needs what
`minilm.py` says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.benchmarks import subjects
from tests.benchmarks.contender import Array, Model
from tests.benchmarks.minilm import Judged, calibration, minilm
from tests.benchmarks.peers.present import Present, present
from tests.benchmarks.peers.torch import of_module
from tests.benchmarks.tables import markdown
from torch import Tensor

import tersor
from tersor.compiler.artifact.files import disk_size
from tersor.compiler.threads import using_threads
from tersor.interleave import interleaved

SHAPE = (1, 128)
SLICE, SECONDS = 3e-3, 2.0
INT8 = ("int8", "8 bits")


def rivals(peers: Present, folder: Path, threads: int) -> Iterator[tuple[str, Model]]:
    """The peers' MiniLM with 8-bit weights."""
    subject = subjects.minilm()
    for peer in peers.modules:
        home = folder / peer.__name__
        home.mkdir()
        peer.prepare(subject, home)
        yield from ((n, run) for n, run in peer.models(subject, home, threads) if any(word in n for word in INT8))


@torch.inference_mode()
def timed(contenders: Mapping[str, Model], inputs: Mapping[str, Array], threads: int) -> dict[str, list[float]]:
    calls = {name: partial(run, inputs) for name, run in contenders.items()}
    with using_threads(threads):
        return interleaved(calls, seconds=SECONDS, slice_seconds=SLICE)


def found(sizes: list[float], latency: str, folder: Path, examples: int) -> Iterator[dict[str, Any]]:
    """One row a size; its artifact is in the folder of its number."""
    model = minilm()
    texts = calibration(model, examples)
    first: tersor.Found | None = None
    for number, size in enumerate(sizes):
        clock, processor = time.perf_counter(), time.process_time()
        asked = {"size": f"{size} MB", "latency": latency, "out": folder / str(number)}
        if first is None:
            taken = first = tersor.search(model.module, model.example, texts, **asked)
        else:
            taken = first.again(**asked)
        yield {
            "budget": size,
            "bytes": disk_size(folder / str(number)),
            "seconds": time.perf_counter() - clock,
            "processor seconds": time.process_time() - processor,
            "damage": taken.result.plan.damage,
            "budgets": [b.text for b in taken.result.report.budgets],
            "measured": [(c.bytes, dict(c.predicted), dict(c.measured)) for c in taken.report.contenders],
            "stages": dict(taken.report.seconds),
            "missed": taken.missed is not None,
        }


def judged(modules: Mapping[str, Callable[..., Any]]) -> dict[str, tuple[float, float, float]]:
    """Of each, mean and least cosine to the original's embeddings of STS-B dev, and Spearman with the human scores."""
    judge, found = Judged(minilm()), {}
    print(f"original: Spearman {judge.spearman(judge.original):.4f}")
    for name, module in modules.items():
        found[name] = judge.scores(module)
        print("{}: cosine {:.5f} mean, {:.4f} least; Spearman {:.4f}".format(name, *found[name]), flush=True)
    return found


def as_module(run: Model, names: Sequence[str]) -> Callable[..., tuple[Tensor]]:
    """A peer's model, which takes its inputs in this order, as a module is called."""
    return lambda **inputs: (torch.from_numpy(run({name: inputs[name].numpy() for name in names})),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, nargs="+", default=[12.0, 18.0, 15.0, 10.0, 9.0, 13.0], help="MB")
    parser.add_argument("--share", type=float, default=0.95, help="of the fastest int8 peer's time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=1024, help="train sentences to calibrate with")
    parser.add_argument("--out", type=Path, help="keep the artifacts and the journal here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers = present()
    print(peers, flush=True)
    inputs = subjects.minilm().sized(*SHAPE)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as models:
        folder = options.out or Path(scratch)
        others = dict(rivals(peers, Path(models), options.threads))
        times = timed(others, inputs, options.threads)
        fastest = min(times, key=lambda name: min(times[name]))
        seconds = options.share * min(times[fastest])
        print(f"fastest int8 peer: {fastest}, {min(times[fastest]) * 1e3:.2f} ms; asked for {seconds * 1e3:.2f} ms")
        latency = f"{seconds * 1e3:.3f} ms at batch = 1, tokens = 128, threads = {options.threads}"
        rows = []
        for row in found(options.size, latency, folder, options.calibration):
            rows.append(row)
            print(
                f"{row['budget']:6.1f}MB {row['bytes']:11,} {row['seconds']:6.1f} s, {row['processor seconds']:6.1f} s "
                f"of processor time; {len(row['measured'])} artifacts measured; {'; '.join(row['budgets'])}",
                flush=True,
            )
        ours = {f"tersor {row['budget']:g} MB": tersor.load(folder / str(i), "numba") for i, row in enumerate(rows)}
        quality = judged({name: as_module(run, list(inputs)) for name, run in others.items()} | ours)
        everyone = others | {name: of_module(module, list(inputs)) for name, module in ours.items()}
        times = timed(everyone, inputs, options.threads)
        print(markdown(
            ("1x128", "least ms", "median ms"),
            [(n, f"{min(t) * 1e3:.2f}", f"{median(t) * 1e3:.2f}") for n, t in times.items()],
        ))  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "quality": quality, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
