"""What a policy means: frozen values, independent of the text they came from.

A policy says which budgets must hold, what to optimise, and, rule by rule, what may be done to which sites. Rules are
ordered; the last rule whose selector names a site decides it. Spans tell where each part was written and take no part
in equality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from tersor.compiler.diagnostics import Span
from tersor.compiler.site import Site

Quantity = Literal["size", "latency", "memory", "metric"]
Operator = Literal["<", "<=", "==", "!=", ">=", ">"]
Value = bool | int | float | str


def _span() -> Span | None:
    return field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Budget:
    """`quantity <= limit` (`>=` for `metric`). `size` and `memory` are bytes, `latency` seconds; with `share` the
    limit is a fraction of the original. `at` names the input shape and the threads: (("batch", 1), ("tokens", 128))."""

    quantity: Quantity
    limit: float
    share: bool = False
    at: tuple[tuple[str, int], ...] = ()
    metric: str | None = None
    span: Span | None = _span()


@dataclass(frozen=True)
class Objective:
    """What is made small (`maximize` only for the user's metric) once every budget holds; `metric` names its function,
    None where it is given in Python."""

    quantity: Literal["damage", "size", "latency", "metric"] = "damage"
    direction: Literal["minimize", "maximize"] = "minimize"
    metric: str | None = None
    span: Span | None = _span()


# --- selectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Everything:
    """`all`: every site."""

    span: Span | None = _span()


@dataclass(frozen=True)
class OfKind:
    """`linear`, `embedding`, `recurrent`, ...: sites of one kind."""

    kind: str
    span: Span | None = _span()


@dataclass(frozen=True)
class OfRole:
    """`role attention.*`: sites whose role matches a glob; a segment matches whole, `*` stays in a segment, `**`
    crosses."""

    glob: str
    span: Span | None = _span()


@dataclass(frozen=True)
class InPath:
    """`in "encoder.layer.0.**"`: sites under a module path; a segment matches whole (`layer.1` is not `layer.10`)."""

    glob: str
    span: Span | None = _span()


@dataclass(frozen=True)
class Where:
    """`where out_features < 64`: a comparison on a property of the site (see `PROPERTIES`)."""

    subject: str
    operator: Operator
    value: Value
    span: Span | None = _span()


@dataclass(frozen=True)
class And:
    left: Selector
    right: Selector
    span: Span | None = _span()


@dataclass(frozen=True)
class Or:
    left: Selector
    right: Selector
    span: Span | None = _span()


@dataclass(frozen=True)
class Not:
    operand: Selector
    span: Span | None = _span()


@dataclass(frozen=True)
class Named:
    """A use of `let name = ...`; carries the selector it stands for."""

    name: str
    selector: Selector
    span: Span | None = _span()


# Kinds a policy may name although no site has them yet: a rule that uses one matches nothing.
STRUCTURAL_KINDS = ("neurons", "heads", "kv_groups", "layers", "width")

Selector = Everything | OfKind | OfRole | InPath | Where | And | Or | Not | Named


def _last(site: Site) -> int:
    return site.shape[-1] if site.shape else 1


PROPERTIES: dict[str, Callable[[Site], Value]] = {
    "out_features": lambda s: s.shape[0] if s.shape else 1,
    "in_features": _last,
    "rows": lambda s: s.shape[0] if s.shape else 1,
    "width": _last,
    "params": lambda s: s.params,
    "bytes": lambda s: s.bytes,
    "uses": lambda s: len(s.readers),
    "kind": lambda s: s.kind,
    "role": lambda s: s.role,
    "path": lambda s: s.path,
}

TEXT_PROPERTIES = frozenset({"kind", "role", "path"})  # compared with `==` and `!=` only; the others are numbers

_COMPARE: dict[str, Callable[[Value, Value], bool]] = {
    "<": lambda a, b: a < b,  # type: ignore[operator]
    "<=": lambda a, b: a <= b,  # type: ignore[operator]
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,  # type: ignore[operator]
    ">": lambda a, b: a > b,  # type: ignore[operator]
}


def glob_matches(glob: str, dotted: str) -> bool:
    """Segment-wise glob: `*`, `?`, `[...]` stay inside one dotted segment, `**` stands for any number of segments.

    >>> glob_matches("layer.1", "layer.10"), glob_matches("a.**", "a.b.c"), glob_matches("a.*", "a.b.c")
    (False, True, False)
    """

    parts = dotted.split(".")
    ends = {0}  # how many parts may have been read so far; a set, so that many `**` cost no more than one
    for segment in glob.split("."):
        if segment == "**":
            ends = set(range(min(ends), len(parts) + 1)) if ends else ends
        else:
            ends = {i + 1 for i in ends if i < len(parts) and fnmatchcase(parts[i], segment)}
    return len(parts) in ends


def selects(selector: Selector, site: Site) -> bool:
    """Whether a selector names a site."""
    match selector:
        case Everything():
            return True
        case OfKind(kind):
            return site.kind == kind
        case OfRole(glob):
            return glob_matches(glob, site.role)
        case InPath(glob):
            return any(glob_matches(glob, path) for path in site.paths)
        case Where(subject, operator, value):
            return _COMPARE[operator](PROPERTIES[subject](site), value)
        case And(left, right):
            return selects(left, site) and selects(right, site)
        case Or(left, right):
            return selects(left, site) or selects(right, site)
        case Not(operand):
            return not selects(operand, site)
        case Named(_, inner):
            return selects(inner, site)


# --- what may be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A value written in per cent: `Share(0.25)` is `25%`. Parameters see the fraction; text keeps the sign."""

    fraction: float


@dataclass(frozen=True)
class Call:
    """A value that takes values, in the loss terms of a recovery only: `every(2)`."""

    name: str
    arguments: tuple[Point, ...] = ()


Point = Value | Share | Call


@dataclass(frozen=True)
class One:
    """A fixed value: `bits = 4`."""

    value: Point


@dataclass(frozen=True)
class OneOf:
    """A set: `group = {32, 64, row}`."""

    values: tuple[Point, ...]


@dataclass(frozen=True)
class Range:
    """A range with both ends: `bits = 2..8`, `rank = 25%..75% step 10%`. Without `step` whole numbers go by 1, shares
    by a tenth of the range."""

    low: int | Share
    high: int | Share
    step: int | Share | None = None


Space = One | OneOf | Range


def expand(space: Space) -> tuple[Value, ...]:
    """Every value of a space, shares as fractions.

    >>> expand(Range(2, 5)), expand(OneOf((32, "row"))), expand(Range(Share(0.25), Share(0.75), Share(0.25)))
    ((2, 3, 4, 5), (32, 'row'), (0.25, 0.5, 0.75))
    """

    def plain(point: Point) -> Value:
        if isinstance(point, Call):
            raise TypeError(f"`{point.name}(...)` is no plain value")
        return point.fraction if isinstance(point, Share) else point

    match space:
        case One(value):
            return (plain(value),)
        case OneOf(values):
            return tuple(plain(v) for v in values)
        case Range(low, high, step):
            if isinstance(low, Share) or isinstance(high, Share):
                first, last = float(plain(low)), float(plain(high))
                width = float(plain(step)) if step is not None else (last - first) / 10
                if width <= 0:
                    return (first,)
                count = int((last - first) / width + 1e-9) + 1
                return tuple(round(first + i * width, 6) for i in range(count))
            return tuple(range(low, high + 1, 1 if step is None else int(plain(step))))


@dataclass(frozen=True)
class Use:
    """A method with the space of its parameters, in the order written; `method` is the full id (`quant.uniform`)."""

    method: str
    arguments: tuple[tuple[str, Space], ...] = ()
    span: Span | None = _span()


@dataclass(frozen=True)
class Option:
    """Methods applied one after another: `prune.magnitude(...) then kmeans(...)`."""

    uses: tuple[Use, ...]
    span: Span | None = _span()


@dataclass(frozen=True)
class Rule:
    """`for SELECTOR choose OPTION or OPTION`; a rule without options is `keep SELECTOR`."""

    selector: Selector
    options: tuple[Option, ...] = ()
    span: Span | None = _span()


@dataclass(frozen=True)
class Term:
    """One weighted loss term of a recovery recipe."""

    weight: float
    use: Use


@dataclass(frozen=True)
class Recover:
    """How the compressed model is trained back: teacher, loss terms, and settings (`steps`, `lr`, ...)."""

    teacher: str | None = None
    loss: tuple[Term, ...] = ()
    settings: tuple[tuple[str, Value], ...] = ()
    span: Span | None = _span()


@dataclass(frozen=True)
class Policy:
    budgets: tuple[Budget, ...] = ()
    objective: Objective = Objective()
    lets: tuple[tuple[str, Selector], ...] = ()
    rules: tuple[Rule, ...] = ()
    recover: Recover | None = None
