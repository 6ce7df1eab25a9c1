"""What every choice takes besides bytes: seconds at every named shape, and memory when it is ready to compute.

A choice is timed as the leaf that the backend makes of it, on the inputs that the model gives this leaf at the shape.
Leaves of one form share a time, whatever their values. A leaf that holds several weights (a recurrent layer) is timed
with one of them in the form of the choice c and the others in a form of theirs that stays, each weight having its part
of the parameters:

    seconds of c = seconds with c - (1 - part) * seconds with every weight in the form that stays

Linear layers that read one value round it once where they round it alike; what that saves is seen where n of them are
timed together:

    shared = (sum of each one's seconds alone - seconds of all together) / (n - 1)
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from tersor.compiler.candidate import Candidate, pack
from tersor.compiler.install import install
from tersor.compiler.measure.calls import TIMED, Called, leaf_calls, reading_together
from tersor.compiler.measure.clock import Engine, Shape, Timings
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.pace import STANDARD, Pace
from tersor.compiler.measure.price import Choice, Choices, Measurements, Shared
from tersor.compiler.method import Refusal
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import parameter_of, slots
from tersor.compiler.stores import Dense, Store

MEMORY = "memory"
"""The quantity of the resident bytes; that of the seconds at a shape is the shape's text."""

ROWS = {"linear": 8192, "embedding": 4096}
"""Rows of a template: a longer matrix is timed by its part, a lookup does not depend on how many rows there are."""

RING_BYTES, RING = 8 * 2**20, 32
"""Copies of a leaf are timed as one program, no more than make a model of this size: weights do not stay in the nearest
cache from call to call of a large one, and the way into a compiled program is paid once for all its leaves."""

SECONDS = 0.25
"""How long one leaf is timed."""

Candidates = Mapping[str, Candidate | None]
"""What is done to each weight of a leaf, by site; None: it stays as it is."""


@dataclass(frozen=True)
class Emitted:
    """Some copies of a leaf as the backend computes them, with its first `rows` rows: the whole leaf takes `times` as
    long as one, and `bytes`. `described` is the layout: leaves with the same take the same time."""

    module: nn.Module
    copies: int
    described: str
    rows: int
    looked_up: bool
    times: float
    bytes: float


def with_costs(
    program: Program,
    measured: Measurements,
    shapes: Sequence[Shape],
    engine: Engine,
    timings: Timings,
    pace: Pace,
    progress: Progress | None = None,
) -> Measurements:
    """The choices with their `costs`."""
    clock = Clock(program, measured.choices, engine, timings, pace)
    calls = {shape: leaf_calls(program, shape) for shape in shapes}
    sites = {site.name: site for site in program.sites}
    found: dict[str, list[dict[str, float]]] = {}
    for number, name in enumerate(measured.choices):
        found[name] = clock.costs(sites[name], calls)
        if progress:
            progress("timing", number + 1, len(measured.choices))
    parts: dict[str, list[Shared | None]] = {name: [None] * len(costs) for name, costs in found.items()}
    for paths in reading_together(program):
        for name, number, shared in clock.shared(paths, found, calls):
            parts[name][number] = shared
    units = {MEMORY: 1.0} | {str(shape): pace.unit(shape.threads) for shape in shapes}

    def taken(costs: Mapping[str, float]) -> dict[str, float]:
        return {key: value * units[key] for key, value in costs.items()}

    return replace(
        measured,
        choices={
            name: tuple(
                replace(c, costs=taken(cost), shared=part and replace(part, costs=taken(part.costs)))
                for c, cost, part in zip(choices, found[name], parts[name], strict=True)
            )
            for name, choices in measured.choices.items()
        },
    )


class Clock:
    """Times leaves, each form once; the rivals of a site in turns."""

    def __init__(self, program: Program, choices: Choices, engine: Engine, timings: Timings, pace: Pace) -> None:
        self.program, self.choices = program, choices
        self.engine, self.timings, self.pace = engine, timings, pace
        self.weights: dict[str, list[Site]] = {}
        for site in program.sites:
            if site.kind in TIMED and len(site.shape) == 2:
                for path, _ in slots(program.module, site):
                    self.weights.setdefault(path, []).append(site)
        self.params = sum(site.params for site in program.sites)
        self.emitted: dict[tuple[str, ...], Emitted] = {}

    def costs(self, site: Site, calls: Mapping[Shape, Mapping[str, Sequence[Called]]]) -> list[dict[str, float]]:
        """Of every choice of a site, references of `Pace` by the text of the shape, and resident bytes."""
        choices = self.choices[site.name]
        found = [{str(shape): 0.0 for shape in calls} | {MEMORY: 0.0} for _ in choices]
        if site.kind not in TIMED or len(site.shape) != 2 or not site.readers:
            return [cost | {MEMORY: 4.0 * site.params} for cost in found]
        for number, path in enumerate(dict.fromkeys(reader.path for reader in site.readers)):
            others = {s.name: _staying(self.choices[s.name]) for s in self.weights[path] if s is not site}
            rest = 1 - site.params / sum(s.params for s in self.weights[path])
            leaves = [self.leaf((path,), others | {site.name: choice.candidate}) for choice in choices]
            staying = self.leaf((path,), others | {site.name: _staying(choices)})
            for shape, by_path in calls.items():
                for call in by_path.get(path, ()):
                    base, *times = self.times([staying, *leaves], call, shape.threads)
                    for cost, taken in zip(found, times, strict=True):
                        cost[str(shape)] += call.times * max(taken - rest * base, 0.0)
            if number == 0:
                for cost, leaf in zip(found, leaves, strict=True):
                    cost[MEMORY] = leaf.bytes - rest * staying.bytes
        return found

    def shared(
        self,
        paths: Sequence[str],
        costs: Mapping[str, Sequence[Mapping[str, float]]],
        calls: Mapping[Shape, Mapping[str, Sequence[Called]]],
    ) -> Iterator[tuple[str, int, Shared]]:
        """What choices share whose layers read one value rounded alike: site, number of the choice, and the part of its
        costs, in references of `Pace`."""
        choices = self.choices
        held = {self.weights[path][0].name: path for path in paths if self._alone(path)}
        groups = {c.candidate.input_group for name in held for c in choices[name] if c.candidate}
        for group in sorted(group for group in groups if group is not None):
            alike = {name: found for name in held if (found := _rounding(choices[name], group))}
            first, *others = [{choices[name][i].text: i for i in found} for name, found in alike.items()]
            text = next((text for text in first if all(text in other for other in others)), None)
            if text is None or not others:
                continue
            candidate = choices[next(iter(alike))][first[text]].candidate
            together_at = tuple(held[name] for name in alike)
            leaf, part = self.leaf(together_at, dict.fromkeys(alike, candidate)), dict[str, float]()
            for shape, by_path in calls.items():
                (together,) = self.times([leaf], by_path[together_at[0]][0], shape.threads)
                apart = sum(costs[name][of[text]][str(shape)] for name, of in zip(alike, [first, *others], strict=True))
                least = min(costs[name][i][str(shape)] for name, found in alike.items() for i in found)
                part[str(shape)] = min(max((apart - together) / len(others), 0.0), least)
            shared = Shared(f"{paths[0]} rounded by {group or 'row'}", part)
            yield from ((name, i, shared) for name, found in alike.items() for i in found)

    def _alone(self, path: str) -> bool:
        """Whether a leaf has one weight, which nobody else reads, and is timed whole."""
        sites = self.weights.get(path, [])
        return len(sites) == 1 and len(sites[0].readers) == 1 and sites[0].shape[0] <= ROWS["linear"]

    def leaf(self, paths: tuple[str, ...], candidates: Candidates) -> Emitted:
        """The leaves at some paths, which read one value, with their weights as candidates make them."""
        modules = [self.program.module.get_submodule(path) for path in paths]
        sites = [site for path in paths for site in self.weights[path]]
        made = tuple(str(site.shape) + (c.text if (c := candidates[site.name]) else "") for site in sites)
        key = (*(f"{type(m)} {m!r}" for m in modules), *made)
        if key not in self.emitted:
            if len(self.emitted) > 64:
                self.emitted.clear()  # they hold weights
            self.emitted[key] = self._emit(paths, modules, candidates)
        return self.emitted[key]

    def _emit(self, paths: Sequence[str], leaves: Sequence[nn.Module], candidates: Candidates) -> Emitted:
        sites = [site for path in paths for site in self.weights[path]]
        rows = min(ROWS.get(sites[0].kind, sites[0].shape[0]), sites[0].shape[0])
        whole = sites[0].shape[0] / rows
        cut = None if len(sites) > 1 else rows
        stores = {site.name: self._store(site, candidates[site.name], cut) for site in sites}
        places = [(site, at, name) for site in sites for at, name in slots(self.program.module, site) if at in paths]
        size = sum(a.nbytes for store in stores.values() for a in store.arrays().values())
        alike = self.params // sum(site.params for site in sites)  # leaves of this size in the whole model
        copies = max(1, min(RING, RING_BYTES // max(1, size), alike))
        ring = ring_of([_cut(leaf, rows) if cut else leaf for leaf in leaves], copies)
        held: dict[str, dict[str, str]] = {}
        for i in range(copies):
            for site, path, name in places:
                held.setdefault(f"leaf{i}_{paths.index(path)}", {})[name] = f"{i}:{site.name}"
        install(ring, held, {f"{i}:{name}": _apart(store) for name, store in stores.items() for i in range(copies)})
        module = self.engine.emit(ring.eval())
        tensors = [*module.named_parameters(), *module.named_buffers()]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in tensors}
        described = "\n".join([repr(module), *(f"{name} {t.dtype} {list(t.shape)}" for name, t in tensors)])
        looked_up = isinstance(leaves[0], nn.Embedding)
        times = 1.0 if looked_up else whole
        return Emitted(module, copies, described, rows, looked_up, times, sum(sizes.values()) / copies * whole)

    def _store(self, site: Site, candidate: Candidate | None, rows: int | None) -> Store:
        weight = parameter_of(self.program.module, site)[:rows]
        store = pack(weight, candidate.steps) if candidate is not None else Dense(weight)
        return Dense(weight) if isinstance(store, Refusal) else store

    def times(self, leaves: Sequence[Emitted], call: Called, threads: int) -> list[float]:
        """References that one call of each leaf takes. What is new is timed in turns with one that was timed before,
        so that all compare."""
        how = f"threads = {threads}, {STANDARD}"
        keys = ["\n".join((self.engine.version, e.described, call.form, how)) for e in leaves]
        by_key = dict(zip(keys, leaves, strict=True))
        known = {key: times for key in by_key if (times := self.timings.get(key)) is not None}
        missing = [key for key in by_key if key not in known]
        if missing:
            timed = [*list(known)[:1], *missing]
            ratios = self.pace.ratios([_run(by_key[key], call.given) for key in timed], threads, SECONDS)
            each = {key: ratio / by_key[key].copies for key, ratio in zip(timed, ratios, strict=True)}
            speed = known[timed[0]] / each[timed[0]] if known else 1.0
            for key in missing:
                known[key] = speed * each[key]
                self.timings.put(key, known[key])
        return [known[key] * leaf.times for key, leaf in zip(keys, leaves, strict=True)]


def _staying(choices: Sequence[Choice]) -> Candidate | None:
    """The form that a weight has while another one of its leaf is timed: that of the choice of middle size."""
    return sorted(choices, key=lambda c: (c.bytes, c.text))[len(choices) // 2].candidate


def _apart(store: Store) -> Store:
    """The same store over arrays of its own."""
    return store.bound({name: array.detach().clone() for name, array in store.arrays().items()})


def _run(leaf: Emitted, given: Tensor) -> Callable[[], object]:
    """One call of all copies. They are given one tensor, for what a leaf of a model reads was written a moment ago."""
    inputs = [given % leaf.rows if leaf.looked_up else given] * leaf.copies
    return lambda: leaf.module(*inputs)


def ring_of(leaves: Sequence[nn.Module], copies: int) -> fx.GraphModule:
    """A graph that calls the leaves, `leaf0_0`, `leaf0_1`, ... on one input, `leaf1_0`, ... on another, and returns
    their outputs (the first of several)."""
    graph = fx.Graph()
    inputs = [graph.placeholder(f"given{i}") for i in range(copies)]
    outputs = []
    for i, given in enumerate(inputs):
        for j, leaf in enumerate(leaves):
            output = graph.call_module(f"leaf{i}_{j}", (given,))
            recurrent = isinstance(leaf, nn.RNNBase)
            outputs.append(graph.call_function(operator.getitem, (output, 0)) if recurrent else output)
    graph.output(tuple(outputs))
    return fx.GraphModule({f"leaf{i}_{j}": leaf for i in range(copies) for j, leaf in enumerate(leaves)}, graph)


def _rounding(choices: Sequence[Choice], group: int) -> list[int]:
    """The numbers of the choices whose kernels round their inputs so."""
    return [i for i, c in enumerate(choices) if c.candidate and c.candidate.input_group == group]


def _cut(leaf: nn.Module, rows: int) -> nn.Module:
    """The leaf with a bias for the first rows only; its weight is installed later."""
    if not isinstance(leaf, nn.Linear) or leaf.bias is None:
        return leaf
    cut = copy.copy(leaf)
    cut._parameters = {**leaf._parameters, "bias": nn.Parameter(leaf.bias.detach()[:rows].clone())}
    return cut
