"""Measured side by side in one run: bytes, milliseconds and fidelity of an artifact, and of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tersor import backend as backends
from tersor.backend import BackendName
from tersor.batches import blame, check_inputs
from tersor.compiler.artifact.files import disk_size
from tersor.compiler.artifact.load import load
from tersor.compiler.callable import CompiledModule
from tersor.compiler.equality import resized
from tersor.compiler.errors import RequestError
from tersor.compiler.signature import Limit
from tersor.compiler.threads import using_threads
from tersor.data import MAX_TOKENS, read_data
from tersor.fidelity import Fidelity, fidelity
from tersor.interleave import interleaved
from tersor.models import Model, has_tokenizer, read_model, read_tokenizer
from tersor.saved import calibrated_on, saved_example, saved_report

SECONDS = 1.0  # of each contender on each shape


@dataclass(frozen=True)
class Timing:
    """Seconds of one forward call: `runs` of each contender, taken in turns."""

    name: str
    batch: int
    tokens: int
    threads: int
    least: float
    median: float
    runs: int


@dataclass(frozen=True)
class Bench:
    bytes: Mapping[str, int]
    timings: tuple[Timing, ...]
    fidelity: Mapping[str, Fidelity]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": dict(self.bytes),
            "timings": [asdict(t) for t in self.timings],
            "fidelity": {name: f.to_json() for name, f in self.fidelity.items()},
            "notes": list(self.notes),
        }


def bench(
    folder: Path,
    against: str | None = None,
    data: str | None = None,
    *,
    columns: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
    batch: int = 1,
    tokens: Sequence[int] = (16, 128),
    threads: int = 1,
    backend: BackendName = "auto",
) -> Bench:
    """Measure an artifact; `against` (a MODEL argument) measures the original beside it. Raises RequestError."""
    backends.check_backend(backend)
    if columns and data is None:
        raise RequestError("--columns names columns of --data, which is not given")
    loaded = load(folder)
    reference = CompiledModule(loaded.module, loaded.signature).eval()
    graph, _ = backends.apply(loaded.module, backend)
    contenders: dict[str, nn.Module] = {}
    original = read_model(against) if against is not None else None
    if original is not None:
        contenders["original"] = original.module
    contenders["compiled"] = CompiledModule(graph, loaded.signature).eval()
    if graph is not loaded.module:
        contenders["compiled, plain torch"] = reference
    example = saved_example(folder) or (dict(original.example) if original else None)
    if example is None:
        raise RequestError(f"{folder} holds no example inputs; give the original with --against MODEL")
    notes: list[str] = []
    report = saved_report(folder)
    batches: Sequence[Mapping[str, Tensor]] = [example]
    on = "the example inputs only: no --data"
    if data is not None:
        found = read_data(data, _tokenising(folder, reference, original), columns, max_tokens)
        batches, on = [*found.calibration, *found.held_out], found.read
        if calibrated_on(folder) == found.source:
            on += ", calibration text included"
            notes.append("the artifact was calibrated on most of this data: give other data for an independent figure")
        notes += [n for n in found.notes if "held out" not in n]
    check_inputs(reference, batches)
    sizes = {"compiled": disk_size(folder)}
    if original is not None:
        sizes = {"original": sum(p.numel() * p.element_size() for p in original.module.parameters()), **sizes}
    base = "original" if original is not None else "compiled, plain torch"
    try:
        compared = {
            name: fidelity(report.signal if report else "embedding", contenders[base], module, batches, on)
            for name, module in contenders.items()
            if base in contenders and name != base
        }
        timings = _timings(contenders, example, loaded.signature.limits, batch, tokens, threads)
    except (TypeError, RuntimeError, IndexError, ValueError) as problem:
        blame(reference, batches)
        if original is None:
            raise
        raise RequestError(
            f"`{against}` does not take what {folder} takes, or gives something else: {problem}"
        ) from None
    return Bench(sizes, tuple(timings), compared, tuple(notes))


def _tokenising(folder: Path, module: nn.Module, original: Model | None) -> Model:
    """Whose tokenizer reads the data: the original's, else the one saved with the artifact."""
    if original is not None:
        return original
    tokenizer = read_tokenizer(folder) if has_tokenizer(folder) else None
    return Named(str(folder), module, {}, folder, tokenizer)


class Named(Model):
    """An artifact with its tokenizer."""

    @property
    def accepted(self) -> frozenset[str]:
        module = self.module
        return frozenset(module.signature.names) if isinstance(module, CompiledModule) else super().accepted

    @property
    def positions(self) -> int | None:
        limits = self.module.signature.limits if isinstance(self.module, CompiledModule) else ()
        return min((limit.max for limit in limits), default=None)


def _timings(
    contenders: Mapping[str, nn.Module],
    example: Mapping[str, Tensor],
    limits: Sequence[Limit],
    batch: int,
    tokens: Sequence[int],
    threads: int,
) -> Iterator[Timing]:
    for count in tokens:
        longest = min((limit.max for limit in limits), default=count)
        if count > longest:
            raise RequestError(f"--tokens {count}: the model takes at most {longest}")
        inputs = resized(example, batch, count, limits)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        with using_threads(threads), torch.no_grad():
            found = interleaved({name: partial(m, **inputs) for name, m in contenders.items()}, seconds=SECONDS)
        for name, times in found.items():
            yield Timing(name, batch, count, threads, min(times), median(times), len(times))
