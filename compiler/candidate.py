"""A candidate: methods at fixed points, applied one after another to a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor

from tersor.compiler.diagnostics import Span
from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Dense, Store


@dataclass(frozen=True)
class Step:
    """One method at one point."""

    method: Method[Any]
    point: Params

    @cached_property
    def text(self) -> str:
        """As a policy would write it, only what differs from the defaults, and always the first parameter. Two points
        of a method have the same text only when they are equal: texts name points."""
        fields = type(self.point).model_fields
        values = {n: getattr(self.point, n) for n in fields}
        shown = {n: v for i, (n, v) in enumerate(values.items()) if i == 0 or v != fields[n].default}
        return f"{self.method.id}({', '.join(f'{name} = {_word(value)}' for name, value in shown.items())})"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return percent(value)
    return f'"{value}"' if isinstance(value, str) and not value.isidentifier() else str(value)


def percent(fraction: float) -> str:
    """A share in per cent, in the fewest digits that read back as the same number.

    >>> percent(0.07), percent(1 / 3), percent(1.0)
    ('7%', '33.33333333333333%', '100%')
    """
    # Decimal, because moving the point of the shortest text is exact where multiplying by 100 rounds.
    shifted = Decimal(repr(fraction)).scaleb(2).normalize()
    return f"{shifted:{'f' if shifted.adjusted() > -7 else 'e'}}%"


@dataclass(frozen=True)
class Candidate:
    """`steps` in order; `option` is the rule's option it comes from, by (rule, option) index; `span` where that was
    written."""

    steps: tuple[Step, ...]
    option: tuple[int, int]
    span: Span | None = None

    @cached_property
    def text(self) -> str:
        return " then ".join(step.text for step in self.steps)

    @property
    def wants_form(self) -> bool:
        """Whether packing does better when it knows the form of the error; only the first step sees whole rows."""
        return self.steps[0].method.wants_form(self.steps[0].point)

    @property
    def input_group(self) -> int | None:
        """How the inputs of the kernel are rounded, as the last step says (see `Method.input_group`)."""
        return self.steps[-1].method.input_group(self.steps[-1].point)

    @cached_property
    def weights(self) -> Candidate:
        """The candidate that leaves the same weights, whatever is done to their inputs."""
        return replace(self, steps=tuple(Step(s.method, s.method.weights(s.point)) for s in self.steps))

    @property
    def scoped(self) -> bool:
        """Whether the rule's sites must take this candidate together."""
        return self.steps[0].method.scope == "rule"


def pack(
    tensor: Tensor, steps: Sequence[Step], scope: Mapping[int, Any] = {}, form: Tensor | None = None
) -> Store | Refusal:
    """The store the steps make of a tensor, or why one of them cannot be applied.

    Each step packs the open leaves that the one before it left; `scope[i]` is what step i surveyed.
    """
    store: Store = Dense(tensor)
    for i, step in enumerate(steps):
        leaves = store.open_leaves()
        if not leaves:
            return Refusal(f"`{steps[i - 1].method.id}` leaves nothing for `{step.method.id}` to work on")
        for leaf in leaves:
            refusal = step.method.refuse(leaf.shape, step.point)
            if refusal is not None:
                return Refusal(f"{step.text}: {refusal.reason}")
        context = Context(scope.get(i), form if i == 0 else None)
        store = store.map_open(lambda leaf, s=step, c=context: s.method.pack(leaf.dense(), s.point, c))  # type: ignore[misc]
    return store


def pack_each(tensor: Tensor, candidates: Sequence[Candidate]) -> Iterator[Store | Refusal]:
    """`pack` for several candidates, in order; neighbours of one method share its work (`Method.pack_each`)."""
    for method, run in groupby(candidates, key=lambda c: c.steps[0].method if len(c.steps) == 1 else None):
        group = list(run)
        if method is None:
            for candidate in group:
                yield pack(tensor, candidate.steps)
            continue
        points = [c.steps[0].point for c in group]
        refusals = [method.refuse(tuple(tensor.shape), point) for point in points]
        stores = method.pack_each(tensor, [p for p, r in zip(points, refusals, strict=True) if r is None])
        for candidate, refusal in zip(group, refusals, strict=True):
            yield next(stores) if refusal is None else Refusal(f"{candidate.steps[0].text}: {refusal.reason}")
