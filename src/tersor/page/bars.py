"""Bytes by part of the model, before and after, as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from tersor.compiler.units import bytes_text
from tersor.page.drawing import GRID, INK, MAIN, MUTED, Canvas, Chart, chart, label
from tersor.page.facts import Part
from tersor.page.front import short

ROW = 34
"""Pixels for one part."""


def part_bars(parts: Sequence[Part]) -> Chart:
    """A thin bar for what a part took, a thick one for what it takes."""
    largest = max(part.before for part in parts)

    def draw(canvas: Canvas) -> None:
        axes = canvas.axes
        rows = range(len(parts))
        axes.barh(rows, [p.before for p in parts], height=0.66, color=GRID)
        for row, part in zip(rows, parts, strict=True):
            told = f"{part.name}: {bytes_text(part.before)} before, {bytes_text(part.after)} after"
            axes.barh([row], [part.after], height=0.34, color=MAIN)[0].set_gid(canvas.mark("part", told))
            words = f"{bytes_text(part.after)}" + (f" of {bytes_text(part.before)}" if part.before else "")
            inside = part.before > (0.45 if canvas.narrow else 0.7) * largest
            where = max(part.before, part.after)
            axes.annotate(
                words, (where, row), xytext=(-5 if inside else 5, 0), textcoords="offset points",
                ha="right" if inside else "left", va="center", color=INK if inside else MUTED, fontsize=11,
            )  # fmt: skip
        axes.set_yticks(rows, [label(p.name) for p in parts], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, largest * 1.02)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(3 if canvas.narrow else 6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short("size", x)))

    saved = sorted(parts, key=lambda p: p.after - p.before)[:3]
    text = "; ".join(f"{p.name} from {bytes_text(p.before)} to {bytes_text(p.after)}" for p in saved)
    return chart("parts", "Bytes by part, before and after", text, (60 + ROW * len(parts), 60 + ROW * len(parts)), draw)
