"""The Pareto front as charts: damage against size, and against every latency that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Literal

from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tersor.compiler.report import FrontPoint, SearchReport
from tersor.compiler.units import bytes_text
from tersor.page.drawing import GRID, INK, MAIN, MUTED, PAPER, SECOND, THIRD, Canvas, Chart, chart
from tersor.page.words import count, quantity

HEIGHTS = (380, 320)
Kind = Literal["met", "unmet", "chosen", "measured", "original"]
SHAPES = {
    "met": ("o", 7, MAIN, MAIN),
    "unmet": ("o", 7, PAPER, MAIN),
    "chosen": ("D", 11, SECOND, PAPER),
    "measured": ("X", 10, THIRD, PAPER),
    "original": ("s", 10, INK, PAPER),
}
"""Marker, size, face and edge of a mark: they differ in shape as well as in colour."""

LABELS: dict[Kind, tuple[str, tuple[int, int], Literal["left", "right"]]] = {
    "chosen": ("the artifact", (10, 10), "left"),
    "original": ("the original", (6, 12), "right"),
}
"""What stands beside a mark, and where."""


@dataclass(frozen=True)
class Dot:
    """A plan at what it takes (`x`) and the damage it does (`y`)."""

    x: float
    y: float
    kind: Kind
    title: str


def front_charts(report: SearchReport) -> list[Chart]:
    """By size, then by every latency with a prediction. None where there is no front."""
    if not report.front:
        return []
    names = list(dict.fromkeys(name for point in report.front for name in point.costs if name.startswith("latency")))
    return [_against(report, f"front-{number}", name) for number, name in enumerate(["size", *names])]


def _against(report: SearchReport, identity: str, name: str) -> Chart:
    found = list(_dots(report, name))
    limits = [b.limit for b in report.budgets if b.name == name]
    span = [d for d in found if d.kind in ("met", "unmet", "chosen")]
    least, most = min(span, key=lambda d: d.x), max(span, key=lambda d: d.x)
    chosen = next(d for d in span if d.kind == "chosen")
    ends = (f"{quantity(name, dot.x)} with damage {dot.y:.2g}" for dot in (least, most, chosen))
    text = "{} from {} to {}; the artifact is at {}".format(count(len(span), "plan"), *ends)
    unit = "" if name == "size" else name.removeprefix("latency ")
    title = f"Damage against {'size' if name == 'size' else f'latency {unit}'}"
    return chart(identity, title, text, HEIGHTS, _drawing(found, limits, name, report.plan.unit))


def _dots(report: SearchReport, name: str) -> Iterator[Dot]:
    for point in report.front:
        x = float(point.bytes) if name == "size" else point.costs.get(name)
        if x is not None:
            yield Dot(x, point.damage, _kind(point), _title(point))
    for contender in report.contenders:
        measured = contender.measured
        if "damage" in measured and name in measured:
            told = f"measured: {bytes_text(contender.bytes)}, damage {measured['damage']:.3g}"
            more = "" if name == "size" else f", {quantity(name, measured[name])}"
            yield Dot(measured[name], measured["damage"], "measured", told + more)
    original = float(report.plan.original_bytes) if name == "size" else report.original.get(name)
    if original is not None:
        yield Dot(original, 0.0, "original", f"the original: {quantity(name, original)}")


def _kind(point: FrontPoint) -> Kind:
    return "chosen" if point.chosen else "met" if point.met else "unmet"


def _title(point: FrontPoint) -> str:
    costs = "".join(f", {quantity(name, value)} {name}" for name, value in point.costs.items())
    return f"{bytes_text(point.bytes)}, damage {point.damage:.3g}{costs} (predicted)"


def _drawing(dots: Sequence[Dot], limits: Sequence[float], name: str, unit: str) -> Callable[[Canvas], None]:
    positive = [d.y for d in dots if d.y > 0] or [1.0]
    zero = 10.0 ** (floor(log10(min(positive))) - 0.5)
    """Where the logarithmic axis has its 0."""

    def draw(canvas: Canvas) -> None:
        axes = canvas.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        line = [d for d in dots if d.kind in ("met", "unmet", "chosen") and d.y > 0] if name == "size" else []
        axes.plot([d.x for d in line], [d.y for d in line], color=MAIN, linewidth=1.5, alpha=0.5)
        for limit in limits:
            axes.axvline(limit, color=SECOND, linewidth=1.5, dashes=(4, 3))
        for dot in sorted(dots, key=lambda d: list(SHAPES).index(d.kind)):
            marker, size, face, edge = SHAPES[dot.kind]
            axes.plot(
                [dot.x], [max(dot.y, zero)], marker=marker, markersize=size, markerfacecolor=face,
                markeredgecolor=edge, markeredgewidth=1.5, linestyle="none", gid=canvas.mark(dot.kind, dot.title),
                clip_on=False, zorder=3,
            )  # fmt: skip
            if dot.kind in LABELS:
                words, where, side = LABELS[dot.kind]
                axes.annotate(
                    f"{words}\n{quantity(name, dot.x)}", (dot.x, max(dot.y, zero)), xytext=where, ha=side,
                    textcoords="offset points", color=INK, fontsize=12, linespacing=1.3, zorder=2,
                )  # fmt: skip
        axes.axhline(zero, color=GRID, linewidth=1)
        low, high = min(d.x for d in dots), max([*limits, *(d.x for d in dots)])
        axes.set_xlim(low / 1.08, high * 1.08)
        axes.set_ylim(zero / 1.4, max(positive) * 1.6)
        axes.xaxis.set_major_locator(FixedLocator(nice(low / 1.08, high * 1.08, 5 if canvas.narrow else 9)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(name, x)))
        powers = LogLocator(numticks=7).tick_values(min(positive), max(positive))
        axes.yaxis.set_major_locator(FixedLocator([zero, *(p for p in powers if zero * 2 < p <= max(positive) * 1.6)]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if y == zero else f"{y:g}".replace("e-0", "e-")))
        axes.set_xlabel(name if canvas.width > 500 or name == "size" else "latency")
        axes.set_ylabel(f"damage, {unit}", color=MUTED)

    return draw


def nice(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers within a logarithmic range, evenly spread."""
    for leads in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = range(floor(log10(low)), floor(log10(high)) + 1)
        found = [lead * 10.0**power for power in powers for lead in leads if low <= lead * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def short(name: str, value: float) -> str:
    """A round number with its unit: `12 MB`, `1.5 ms`."""
    number, _, unit = quantity(name, value).partition(" ")
    return f"{float(number):g} {unit}"
