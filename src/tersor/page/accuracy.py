"""How well measured values were predicted, as a chart: one mark for each measured artifact and quantity."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from tersor.page.drawing import GRID, INK, MAIN, MUTED, PAPER, SECOND, Canvas, Chart, chart, label
from tersor.page.facts import Compared

CLOSE = 0.1
"""A prediction within this share of what was measured counts as close."""


def accuracy_chart(compared: Sequence[Compared]) -> Chart | None:
    """Measured beyond predicted, in per cent. None where nothing was predicted."""
    known = [c for c in compared if c.off is not None]
    if not known:
        return None
    names = list(dict.fromkeys(c.name for c in known))

    def draw(canvas: Canvas) -> None:
        axes = canvas.axes
        axes.axvspan(-CLOSE, CLOSE, color=GRID, alpha=0.7)
        axes.axvline(0, color=MUTED, linewidth=1)
        for c in known:
            if c.off is None:
                continue
            told = f"artifact {c.number}, {c.name}: predicted {c.predicted_text}, measured {c.measured_text}"
            axes.plot(
                [c.off], [names.index(c.name)], marker="D" if c.best else "o", markersize=10 if c.best else 9,
                markerfacecolor=SECOND if c.best else MAIN, markeredgecolor=PAPER, linestyle="none", clip_on=False,
                gid=canvas.mark("compared", told), zorder=3,
            )  # fmt: skip
        reach = max(2 * CLOSE, *(abs(c.off or 0) for c in known)) * 1.1
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [_short(name, canvas.narrow) for name in names], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4 if canvas.narrow else 9, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+.0%}" if x else "exact"))
        axes.set_xlabel("measured, beyond what was predicted")

    text = "; ".join(f"{c.name} of artifact {c.number} {c.off:+.1%}" for c in known if c.off is not None)
    return chart("accuracy", "Measured against predicted", text, (90 + 40 * len(names), 90 + 40 * len(names)), draw)


def _short(name: str, narrow: bool) -> str:
    quantity, _, inputs = name.partition(" at ")
    return label(quantity) if narrow or not inputs else f"{label(quantity)} at\n{inputs}"
