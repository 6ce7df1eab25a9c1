"""One pass over calibration examples: what every weight is multiplied with, and how the signal answers to the product.

For a probe f per example (`measure.signal`) and a weight W read as y = x W^T, the derivative of f along a change D of
W is sum_t g_t^T D x_t over the tokens t of the example, with g = df/dy. So it is enough to keep x and g, in 16 bits,
for as many examples as fit the memory limit. Weights without such a product (the recurrent ones, with their biases)
keep df/dW per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tersor.compiler.callable import CompiledModule
from tersor.compiler.errors import RequestError
from tersor.compiler.measure.signal import Signal
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import slots
from tersor.compiler.stores.base import join

Batch = Mapping[str, Tensor]
Progress = Callable[[str, int, int], None]

MAX_EXAMPLES = 192
MAX_PASSES = 4
MIN_MEMORY = 40 * 2**20
KEPT = torch.bfloat16
TOGETHER = 8
"""Examples of one batch that `gathered` takes, where there are so many."""
TRACED = ("linear", "embedding", "recurrent")


@dataclass(frozen=True)
class Products:
    """Reads y = x W^T of one batch: `inputs` (examples, tokens, in), `gradients` (examples, tokens, out)."""

    first: int
    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class Lookups:
    """Reads W[index] of one batch: `index` (examples, tokens), `gradients` (examples, tokens, width)."""

    first: int
    index: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class Slopes:
    """df/dW of one example, the shape of W."""

    first: int
    gradients: Tensor


Trace = Products | Lookups | Slopes


@dataclass(frozen=True)
class Calibration:
    """The traces of every weight by site name; a site that the signal does not reach has none. `first` in a trace is
    the number of its first example."""

    traces: Mapping[str, tuple[Trace, ...]]
    examples: int
    signal: Signal


def by_example(tensor: Tensor, batch: int, features: int) -> Tensor | None:
    """(batch, tokens, ...) of a tensor whose examples are its first dimension, are folded into it (batch x tokens),
    or, for time-major layers, are its second; None where examples cannot be told apart. `features` counts the
    trailing dimensions that are not tokens."""
    lead = tensor.shape[: tensor.dim() - features]
    tail = tensor.shape[tensor.dim() - features :]
    if len(lead) > 1 and lead[0] != batch == lead[1]:
        return tensor.transpose(0, 1).reshape(batch, prod(lead) // batch, *tail)
    if lead and lead[0] % batch == 0:
        return tensor.reshape(batch, prod(lead) // batch, *tail)
    return None


class _Taps:
    """Hooks on the leaf modules that read the wanted weights; collects their traces batch by batch."""

    def __init__(self, graph: nn.Module, sites: Sequence[Site]) -> None:
        self.traces: dict[str, list[Trace]] = {site.name: [] for site in sites}
        self.first, self.batch = 0, 0
        self.mixed: dict[str, Site] = {}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles: list[RemovableHandle] = []
        for site in sites:
            for path in dict.fromkeys(reader.path for reader in site.readers):
                self._handles.append(graph.get_submodule(path).register_forward_hook(self._hook(site)))

    def start(self, first: int, batch: int) -> None:
        self.first, self.batch = first, batch
        self._copies.clear()

    def _hook(self, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def read(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not output.requires_grad:
                return None
            first, batch, given = self.first, self.batch, arguments[0]
            replaced = None
            if output.dim() > 2 and output.shape[0] == 1 != batch:
                # One row for all examples (positions): one copy per example, so that their gradients stay apart.
                given, output = (t.expand(batch, *t.shape[1:]) for t in (given, output))
                replaced = output

            def answered(gradient: Tensor) -> None:
                kept = by_example(gradient.detach().to(KEPT), batch, 1)
                lookup = isinstance(module, nn.Embedding)
                read = by_example(given if lookup else self._copy(given), batch, 0 if lookup else 1)
                if kept is None or read is None:
                    self.mixed[site.name] = site
                elif lookup:
                    self.traces[site.name].append(Lookups(first, read, kept))
                else:
                    self.traces[site.name].append(Products(first, read, kept))

            output.register_hook(answered)
            return replaced

        return read

    def _copy(self, given: Tensor) -> Tensor:
        """The 16-bit copy of an input, one for all its readers (query, key and value read the same tensor)."""
        if id(given) not in self._copies:
            self._copies[id(given)] = (given, given.detach().to(KEPT))
        return self._copies[id(given)][1]

    def close(self) -> None:
        self._copies.clear()  # activations hold their graph, whose hooks hold this object: no collector sees that cycle
        for handle in self._handles:
            handle.remove()


def _starts(graph: nn.Module, sites: Sequence[Site]) -> list[RemovableHandle]:
    """Hooks that make the rows of every embedding ask for a gradient: with the parameters set aside, that is where
    differentiation starts, whichever sites are traced."""

    def start(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_(True)

    paths = dict.fromkeys(reader.path for site in sites for reader in site.readers)
    modules = {path: graph.get_submodule(path) for path in paths}
    return [m.register_forward_hook(start) for m in modules.values() if isinstance(m, nn.Embedding)]


@contextmanager
def _gradients_only_for(module: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """No parameter asks for a gradient but the wanted ones; restored at the end."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    for p, _ in before:
        p.requires_grad_(any(p is w for w in wanted))
    try:
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


def batch_size(batch: Batch) -> int:
    """Examples in a batch."""
    return next(iter(batch.values())).shape[0]


def limited(batches: Sequence[Batch], examples: int) -> Iterator[Batch]:
    """`examples` examples spread evenly over the batches (which are often sorted by length), or all when there are
    fewer."""
    total = sum(map(batch_size, batches))
    wanted = torch.arange(min(examples, total)) * total // min(examples, total)
    first = 0
    for batch in batches:
        size = batch_size(batch)
        rows = wanted[(wanted >= first) & (wanted < first + size)] - first
        if rows.numel():
            yield {name: value[rows] for name, value in batch.items()}
        first += size


def gathered(batches: Sequence[Batch], examples: int) -> Iterator[Batch]:
    """`examples` examples from batches spread evenly, `TOGETHER` of each where there are so many: batches differ in
    length, and every length costs something."""
    count = -(-examples // TOGETHER)
    spread = [batches[i * len(batches) // count] for i in range(count)] if count < len(batches) else batches
    return limited(spread, examples)


def probe(run: CompiledModule, batch: Batch, signal: Signal, generator: torch.Generator) -> Tensor:
    """The probe of every example of a batch, (examples,)."""
    inputs = run.bind((), dict(batch))
    for value in inputs.values():
        if value.dtype.is_floating_point:
            value.requires_grad_(True)
    return signal.probe(run.graph_module(*[inputs[n] for n in run.signature.names]), inputs, generator)


def bytes_per_example(site: Site, tokens: float) -> float:
    """Bytes of the traces of one example with this many tokens; an input shared by several readers is counted for
    each."""
    if site.kind in ("recurrent", "bias"):
        return 4.0 * site.params
    width = site.shape[1] + 4 if site.kind == "embedding" else sum(site.shape)
    return float(width * len(site.readers) * KEPT.itemsize) * tokens


@dataclass(frozen=True)
class Schedule:
    """How the traces fit the memory: `examples` of them, for one group of sites after another, each in a pass of its
    own."""

    examples: int
    groups: tuple[tuple[Site, ...], ...]


def schedule(sites: Sequence[Site], batches: Sequence[Batch], memory: int | None = None) -> Schedule:
    """At most `MAX_PASSES` passes over as many examples as `memory` bytes allow a group (default: a third of the size
    of the model, at least `MIN_MEMORY`). Raises RequestError when there are no examples."""
    if not batches:
        raise RequestError("the calibration data has no examples")
    traced = [s for s in sites if s.role == "recurrent.bias" or (s.kind in TRACED and s.readers)]
    budget = memory or max(MIN_MEMORY, sum(s.bytes for s in sites) // 3)
    total = sum(map(batch_size, batches))
    tokens = sum(next(iter(b.values())).shape[:2].numel() for b in batches) / total
    costs = [bytes_per_example(s, tokens) for s in traced]
    # A group may overshoot its share by one site: plan for the share less the largest site.
    share = max(budget - max(costs, default=0.0), budget / 2)
    examples = max(1, min(MAX_EXAMPLES, total, int(MAX_PASSES * share / max(1.0, sum(costs)))))
    groups: list[list[Site]] = [[]]
    filled = 0.0
    for site, cost in zip(traced, costs, strict=True):
        # Embeddings come alone: pricing a large table takes memory of its own.
        alone = bool(groups[-1]) and (site.kind == "embedding") != (groups[-1][-1].kind == "embedding")
        if filled and (alone or (filled + cost) * examples > budget):
            groups.append([])
            filled = 0.0
        groups[-1].append(site)
        filled += cost
    return Schedule(examples, tuple(map(tuple, groups)))


def collect(
    program: Program,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    signal: Signal,
    examples: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Run the probe backwards over `examples` examples, in eval mode, and keep the traces of `sites`.

    The same seed gives the same probes, whichever sites are traced.
    """
    run = program.callable().eval()
    starts = _starts(run.graph_module, program.sites)
    taps = _Taps(run.graph_module, [s for s in sites if s.kind in ("linear", "embedding")])
    generator = torch.Generator().manual_seed(seed)
    try:
        with _gradients_only_for(run, ()):
            for batch in limited(batches, examples):
                taps.start(taps.first + taps.batch, batch_size(batch))
                value = probe(run, batch, signal, generator).sum()
                if value.requires_grad:
                    value.backward()
                if progress:
                    progress("calibrating", taps.first + taps.batch, examples)
    finally:
        taps.close()
        for handle in starts:
            handle.remove()
    traces = {name: tuple(found) for name, found in taps.traces.items() if found and name not in taps.mixed}
    hidden = [s for s in sites if s.kind not in ("linear", "embedding")]
    # Slopes of large weights would not fit the memory: those stay without a judgement, and the plan says so.
    small = [s for s in taps.mixed.values() if 4 * s.params * examples <= MIN_MEMORY]
    traces |= _slopes(run, [*hidden, *small], batches, signal, examples, seed, progress)
    return Calibration(traces, examples, signal)


def _slopes(
    run: CompiledModule,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    signal: Signal,
    examples: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, tuple[Trace, ...]]:
    """df/dW example by example, for weights whose products stay hidden (inside a recurrent operator) or mix
    examples."""
    if not sites:
        return {}
    where = {s.name: slots(run.graph_module, s)[0] for s in sites}
    weights = {name: run.graph_module.get_parameter(join(path, own)) for name, (path, own) in where.items()}
    found: dict[str, list[Trace]] = {s.name: [] for s in sites}
    generator = torch.Generator().manual_seed(seed)
    example = 0
    with _gradients_only_for(run, list(weights.values())):
        for batch in limited(batches, examples):
            for i in range(batch_size(batch)):
                one = {name: value[i : i + 1] for name, value in batch.items()}
                value = probe(run, one, signal, generator).sum()
                slopes = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for name, slope in zip(weights, slopes, strict=True):
                    if slope is not None:
                        found[name].append(Slopes(example, slope.detach()))
                example += 1
                if progress:
                    progress("calibrating recurrent layers", example, examples)
    return {name: tuple(traces) for name, traces in found.items() if traces}
