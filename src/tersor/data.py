"""The DATA argument: examples from a file, tokenised, or batches from a function; some to calibrate, some to judge."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.batches import EVERY, Batch, plain_batches, split
from tersor.compiler.errors import RequestError
from tersor.models import TARGET, Model, accepted_inputs, call
from tersor.reading import Texts, read_examples

MAX_EXAMPLES = 2048
BATCH = 32
MAX_TOKENS = 128
CHARACTERS = 64
"""Characters read per token at most: a line of megabytes is cut before it is tokenised."""


@dataclass(frozen=True)
class Data:
    """Batches to calibrate with and batches to judge by, what was read in words, and what was left out on the way.

    `source` tells data sets apart: the SHA-256 of the examples that were read, or the name of a function."""

    calibration: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    read: str
    source: str
    notes: tuple[str, ...] = ()


def read_data(argument: str, model: Model, columns: Sequence[str] = (), max_tokens: int = MAX_TOKENS) -> Data:
    """The data behind a DATA argument: `file`, `file:column` or `file:column1,column2` (JSONL, CSV), or
    `package.module:function` yielding batches. Every tenth example is held out. Raises RequestError."""
    path, named = _file_and_columns(argument)
    if named and columns:
        raise RequestError(f"columns are given twice: in `{argument}` and with --columns")
    if not path.exists() and TARGET.fullmatch(argument):
        return _from_function(argument)
    examples = read_examples(path, columns or named)
    texts = evenly(examples.texts, MAX_EXAMPLES)
    notes = [f"{examples.blank} blank examples of {path.name} were left out"] if examples.blank else []
    if len(texts) < len(examples.texts):
        notes.append(f"{len(texts)} of the {len(examples.texts)} examples of {path.name} are used, spread evenly")
    away = set(range(EVERY - 1, len(texts), EVERY)) or ({len(texts) - 1} if len(texts) > 1 else set())
    tokens = min(max_tokens, model.positions or max_tokens)
    calibration = batched([t for i, t in enumerate(texts) if i not in away], model, tokens)
    held_out = batched([texts[i] for i in sorted(away)], model, tokens)
    if away:
        notes.append(f"{len(away)} of {len(texts)} examples were held out to judge the result")
    share = "all" if len(texts) == len(examples.texts) else f"{len(texts):,} of the"
    read = f"{share} {len(examples.texts):,} examples of {path.name}, at most {tokens:,} tokens of each"
    source = hashlib.sha256(json.dumps(examples.texts).encode()).hexdigest()
    return Data(tuple(calibration), tuple(held_out), read, source, tuple(notes))


def _file_and_columns(argument: str) -> tuple[Path, tuple[str, ...]]:
    path = Path(argument)
    name, colon, columns = argument.rpartition(":")
    if colon and not path.exists() and Path(name).suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv"):
        return Path(name), tuple(c.strip() for c in columns.split(",") if c.strip())
    return path, ()


def _from_function(argument: str) -> Data:
    returned = call(argument, "DATA")
    if not isinstance(returned, Iterable):
        raise RequestError(f"DATA `{argument}` must return batches, not a {type(returned).__name__}")
    calibration, held_out = split(plain_batches(returned))
    return Data(tuple(calibration), tuple(held_out), f"all batches of {argument}", argument)


def evenly(examples: Sequence[Texts], most: int, seed: int = 0) -> list[Texts]:
    """At most `most` examples, one from each of as many equal stretches, in order."""
    if len(examples) <= most:
        return list(examples)
    rng = random.Random(seed)
    edges = [i * len(examples) // most for i in range(most + 1)]
    return [examples[rng.randrange(low, high)] for low, high in pairwise(edges)]


def batched(texts: Sequence[Texts], model: Model, max_tokens: int, seed: int = 0) -> list[Batch]:
    """Tokenised batches of examples of like length, padded.

    They come in random order: what reads only the first of them must not see only the short ones.
    """
    if not texts:
        return []
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise RequestError(
            f"text needs a tokenizer, and MODEL `{model.name}` has none: "
            "give a Hugging Face folder with one, or DATA as package.module:function yielding batches"
        )
    most = CHARACTERS * max_tokens
    columns = [[example[c][:most] for example in texts] for c in range(len(texts[0]))]
    encoded = tokenizer(*columns, truncation=True, max_length=max_tokens)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted((i for i in range(len(texts)) if lengths[i]), key=lambda i: lengths[i])
    batches: list[Batch] = []
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        padded: dict[str, Tensor] = tokenizer.pad(
            {name: [values[i] for i in rows] for name, values in encoded.items()}, return_tensors="pt"
        )
        batches.append(accepted_inputs(model, padded))
    random.Random(seed).shuffle(batches)
    return plain_batches(batches)
