"""A page as a parser of HTML sees it: elements with their text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parents: tuple[Element, ...] = ()
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()


class Document(HTMLParser):
    """All elements in order; every tag must be closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {[e.tag for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        element = Element(tag, dict(attrs), tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        last = self._open.pop()
        assert last.tag == tag, f"<{last.tag}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def all(self, tag: str, within: str | None = None) -> list[Element]:
        """Elements of a tag, within the element of an id."""
        return [
            e for e in self.elements
            if e.tag == tag and (within is None or any(p.attributes.get("id") == within for p in e.parents))
        ]  # fmt: skip

    def marks(self, kind: str, width: str) -> list[Element]:
        """Marks of a kind in the charts of a width (`wide` or `narrow`)."""
        return [
            e for e in self.elements
            if e.classes == ["mark", kind] and any(p.classes == ["chart", width] for p in e.parents)
        ]  # fmt: skip
