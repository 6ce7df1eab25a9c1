"""Charts as inline SVG: drawn by matplotlib, coloured by the style sheet of the page, so that both schemes fit.

A drawing is made with colours that stand for variables of the style sheet; `inline` puts the variables in their place,
gives marks a class and a title, and makes ids unique on the page.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, MAIN, SECOND, THIRD, PAPER = (f"#0000{n:02x}" for n in range(1, 8))
VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", MAIN: "--main", SECOND: "--second", THIRD: "--third",
    PAPER: "--paper",
}  # fmt: skip
WIDE, NARROW = 880, 350
"""Widths in CSS pixels; the page shows the one that fits, with letters of the same size."""
LETTERS = 22
"""The longest name beside an axis."""
STYLE: dict[Any, object] = {
    "text.parse_math": False,  # a `$` in a name is a dollar
    "svg.fonttype": "none",  # letters stay text: they can be read aloud, searched, and take the font of the page
    "svg.hashsalt": "tersor",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "path.simplify": False,
    "savefig.dpi": 72,  # one point of the drawing is one pixel of the page
}


@dataclass(frozen=True)
class Mark:
    """What a mark of a drawing is (a class of the style sheet) and says."""

    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """The same drawing for wide and narrow screens."""

    wide: Markup
    narrow: Markup


class Canvas:
    """One axes to draw on; `mark` names what can be pointed at."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.marks: dict[str, Mark] = {}

    @property
    def narrow(self) -> bool:
        return self.width < WIDE

    def mark(self, kind: str, title: str) -> str:
        """A name for a mark, to be given to matplotlib as its `gid`."""
        name = f"mark{len(self.marks)}"
        self.marks[name] = Mark(kind, title)
        return name


def chart(name: str, title: str, text: str, heights: tuple[int, int], draw: Callable[[Canvas], None]) -> Chart:
    """Draw in both widths; `heights` are in pixels, wide and narrow; `title` and `text` say what is to be seen, `name`
    is unique."""

    def drawn(width: int, height: int) -> Markup:
        with rc_context(STYLE), warnings.catch_warnings():
            # What a font of ours lacks is no matter: the letters are drawn by the browser.
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            canvas = Canvas(width, height)
            draw(canvas)
            layout = canvas.figure.get_layout_engine()
            if layout is not None:
                layout.execute(canvas.figure)
                canvas.figure.set_layout_engine(None)  # or saving draws everything once more to lay it out
            out = io.BytesIO()
            canvas.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        return inline(out.getvalue().decode(), f"{name}-{width}", title, text, canvas.marks)

    return Chart(drawn(WIDE, heights[0]), drawn(NARROW, heights[1]))


def label(text: str) -> str:
    """A name as it stands beside an axis: short, and of letters that can be drawn."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= LETTERS else f"{plain[: LETTERS - 1]}…"


def inline(svg: str, name: str, title: str, text: str, marks: Mapping[str, Mark]) -> Markup:
    """The `svg` element for a page. What is not needed there (addresses, a style of its own, ids) is left out."""
    root = ET.fromstring(svg)
    for parent in root.iter():
        parent.tag = _local(parent.tag)
        parent.attrib = {_local(key): value for key, value in parent.attrib.items()}
        for child in [c for c in parent if _local(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    pointed = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", ET.tostring(root, encoding="unicode")))
    for element in root.iter():
        found = element.attrib.pop("id", "")
        if found in marks:
            element.set("class", f"mark {marks[found].kind}")
            _first(element, "title", marks[found].title)
        elif found in pointed:
            element.set("id", f"{name}-{found}")
        for key, value in element.attrib.items():
            element.attrib[key] = _named(value, name)
    size = root.attrib["viewBox"]
    root.attrib = {"viewBox": size, "role": "img", "aria-labelledby": f"{name}-title {name}-text"}
    _first(root, "desc", text, f"{name}-text")
    _first(root, "title", title, f"{name}-title")
    return Markup(ET.tostring(root, encoding="unicode"))


def _named(value: str, name: str) -> str:
    """An attribute with variables for colours, ids of this drawing, and the font of the page."""
    value = re.sub(r"url\(#|^#(?=[a-zA-Z])", lambda found: f"{found[0]}{name}-", value)
    value = re.sub(r"#0000\d\d", lambda found: f"var({VARIABLES[found[0]]})", value)
    value = re.sub(r"font-family:[^;]+;?", "", value)
    return re.sub(r"font: ([\d.]+)px [^;]+", r"font-size: \1px", value)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _first(parent: ET.Element, tag: str, text: str, name: str = "") -> None:
    element = ET.Element(tag, {"id": name} if name else {})
    element.text = text
    parent.insert(0, element)
