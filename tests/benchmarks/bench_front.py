"""The front of MiniLM: one search, then other sizes from the same measurements, judged on STS-B dev.

    python tests/benchmarks/bench_front.py [--size 12 18 15 10 9] [--latency "14 ms"] [--backend numba eager]

For each size: bytes on disk, mean and least cosine of the embeddings to the original's, Spearman with the human scores,
seconds on the clock and of processor time, and what the saved artifact took of each budget. With `--latency` every
size has this budget too, and `--faster` is one more for the first size. Needs what `minilm.py` says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from minilm import Judged, calibration, minilm

import tersor
from tersor.compiler.artifact.files import disk_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, nargs="+", default=[12.0, 18.0, 15.0, 10.0, 9.0], help="MB")
    parser.add_argument("--latency", help='a budget on latency, such as "14 ms at tokens = 128"')
    parser.add_argument("--faster", help="a lower one, asked for with the first size at the end")
    parser.add_argument("--backend", choices=("numba", "eager"), nargs="+", default=["numba"], help="to judge with")
    parser.add_argument("--calibration", type=int, default=1024, help="train sentences to calibrate with")
    parser.add_argument("--out", type=Path, help="keep the artifacts and the journal here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = minilm()
    texts = calibration(model, options.calibration)
    asked = [(size, options.latency) for size in options.size]
    if options.faster:
        asked.append((options.size[0], options.faster))
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        first: tersor.Found | None = None
        for number, (size, latency) in enumerate(asked):
            clock, processor = time.perf_counter(), time.process_time()
            budgets = {"size": f"{size} MB", "latency": latency, "out": folder / str(number)}
            if first is None:
                taken = first = tersor.search(model.module, model.example, texts, **budgets)
            else:
                taken = first.again(**budgets)
            row = {
                "budget": size,
                "bytes": disk_size(folder / str(number)),
                "seconds": time.perf_counter() - clock,
                "processor seconds": time.process_time() - processor,
                "predicted": taken.result.plan.damage,
                "budgets": [b.text for b in taken.result.report.budgets],
                "measured": [(c.bytes, dict(c.predicted), dict(c.measured)) for c in taken.report.contenders],
                "stages": dict(taken.report.seconds),
                "missed": taken.missed is not None,
            }
            found.append(row)
            print(
                f"{size:6.1f}MB {row['bytes']:11,} {row['seconds']:6.1f} s, {row['processor seconds']:6.1f} s of "
                f"processor time; {len(taken.report.contenders)} artifacts measured; {'; '.join(row['budgets'])}",
                flush=True,
            )
        judged = Judged(model)
        print(f"original: Spearman {judged.spearman(judged.original):.4f}")
        for number, row in enumerate(found):
            for backend in options.backend:
                mean, least, rank = judged.scores(tersor.load(folder / str(number), backend))
                row |= {f"{backend} mean": mean, f"{backend} least": least, f"{backend} spearman": rank}
                print(
                    f"{row['budget']:6.1f}MB {row['bytes']:11,} {backend:>6}: cosine {mean:.5f} mean, {least:.4f} "
                    f"least; Spearman {rank:.4f}; predicted {1 - row['predicted']:.5f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
