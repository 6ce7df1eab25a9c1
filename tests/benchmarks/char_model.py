"""A character language model, trained here on real text and kept for the next run."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from math import log
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, SYMBOLS = 64, 256, 128
STREAMS, SPAN, STEPS, RATE = 64, 64, 1500, 5e-3
ROOT = Path(__file__).resolve().parents[2]


def shared_data() -> Path:
    """The folder of data sets too large to ship: `shared/data` beside the checkout, or TERSOR_SHARED_DATA."""
    folder = Path(os.environ.get("TERSOR_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit("no data sets: put them in ../shared/data beside the checkout, or name them in TERSOR_SHARED_DATA")
    return folder


def cache_folder() -> Path:
    """Where trained weights are kept: TERSOR_CACHE_DIR, else ~/.cache/tersor, with a folder for benchmarks."""
    named = os.environ.get("TERSOR_CACHE_DIR")
    folder = (Path(named) if named else Path.home() / ".cache" / "tersor") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class CharModel(nn.Module):
    """Embedding, one LSTM, linear: logits (batch, length, symbols) of the next character, and the state (batch, hidden)
    reached."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(self.embedding(tokens), (h.unsqueeze(0), c.unsqueeze(0)))
        return self.head(y), h.squeeze(0), c.squeeze(0)


def blank(streams: int) -> tuple[Tensor, Tensor]:
    """The state before the first character."""
    return torch.zeros(streams, HIDDEN), torch.zeros(streams, HIDDEN)


@dataclass(frozen=True)
class Text:
    """Characters as symbols: the first 85 % of the text to train and calibrate with, the rest to judge by. Symbol 0
    stands for every character outside the 127 most frequent ones of the training part."""

    train: Tensor
    held_out: Tensor

    @classmethod
    def read(cls, path: Path) -> Text:
        text = path.read_text(encoding="utf-8")
        cut = int(0.85 * len(text))
        symbols = {c: i for i, (c, _) in enumerate(Counter(text[:cut]).most_common(SYMBOLS - 1), 1)}
        ids = torch.tensor([symbols.get(c, 0) for c in text])
        return cls(ids[:cut], ids[cut:])

    @staticmethod
    def streams(ids: Tensor, count: int) -> Tensor:
        """The text as `count` rows that follow one another, (count, length)."""
        return ids[: len(ids) // count * count].view(count, -1)


def bits_per_character(model: nn.Module, ids: Tensor, streams: int = 20, span: int = 500) -> float:
    """Cross entropy in bits of every next character, the state carried along each of `streams` pieces of the text."""
    rows = Text.streams(ids, streams)
    h, c = blank(streams)
    total = 0.0
    with torch.no_grad():
        for start in range(0, rows.shape[1] - 1, span):
            target = rows[:, start + 1 : start + span + 1]
            logits, h, c = model(tokens=rows[:, start : start + target.shape[1]], h=h, c=c)
            total += float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    return total / (streams * (rows.shape[1] - 1)) / log(2)


@torch.no_grad()
def passages(model: nn.Module, ids: Tensor, streams: int, span: int, count: int) -> list[dict[str, Tensor]]:
    """`count` batches that follow one another, as keyword arguments: each starts in the state the one before left."""
    rows = Text.streams(ids, streams)
    h, c = blank(streams)
    found = []
    for start in range(0, count * span, span):
        found.append({"tokens": rows[:, start : start + span], "h": h, "c": c})
        _, h, c = model(**found[-1])
    return found


def trained(text: Text) -> CharModel:
    """The model out of the cache; the first time it is trained (Adam with a cosine schedule, minutes)."""
    torch.manual_seed(0)
    model = CharModel()
    path = cache_folder() / f"char_lstm_{HIDDEN}_{STEPS}.safetensors"
    if path.is_file():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    rows = Text.streams(text.train, STREAMS)
    h, c = blank(STREAMS)
    start, begun = 0, time.perf_counter()
    for step in range(1, STEPS + 1):
        if start + SPAN + 1 > rows.shape[1]:
            start, (h, c) = 0, blank(STREAMS)
        logits, h, c = model(rows[:, start : start + SPAN], h.detach(), c.detach())
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, start + 1 : start + SPAN + 1].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        start += SPAN
        if step % 100 == 0:
            seconds = time.perf_counter() - begun
            print(f"training: step {step}/{STEPS}, {loss.item() / log(2):.3f} bits/char, {seconds:.0f} s", flush=True)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()
