"""The report page in a real browser: nothing is fetched or complained of, and it fits every screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.page.browser import Browser, chromium
from tests.page.samples import compilation, report

from tersor.page.render import page

WIDTHS = (1100, 390, 320)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("NO CHROMIUM: the report page is not opened in any browser (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, shown in (("search", report()), ("compilation", compilation())):
        found[name] = folder / f"{name}.html"
        found[name].write_bytes(page(shown))
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["search", "compilation"])
def test_it_opens_without_a_word_and_fits(
    browser: Browser, files: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.requests.clear()
    browser.said.clear()
    browser.open(files[name], width=width, dark=dark)
    assert browser.requests == [files[name].resolve().as_uri()]
    assert browser.said == []
    assert browser.evaluate("'harmed' in window") is False
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = browser.evaluate("[...document.querySelectorAll('.chart')].filter(c => c.offsetHeight > 100).length")
    assert shown == {"search": 4, "compilation": 1}[name]
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(17, 22, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width", WIDTHS)
def test_every_point_of_the_front_can_be_seen_apart(browser: Browser, files: dict[str, Path], width: int) -> None:
    """The first visible chart has a visible mark for each point, each at a place of its own within the chart."""
    browser.open(files["search"], width=width)
    places = browser.evaluate(
        """(() => { const svg = [...document.querySelectorAll('#front svg')].find(s => s.clientWidth);
        const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll('.met, .unmet, .chosen')];
        return marks.map(mark => { const b = mark.getBoundingClientRect();
        return [b.x + b.width / 2 - box.x, b.y + b.height / 2 - box.y, b.width, box.width, box.height] }) })()"""
    )
    assert len(places) == len(report().front)
    assert len({(round(x), round(y)) for x, y, *_ in places}) == len(places)
    for x, y, size, wide, high in places:
        assert 0 < x < wide
        assert 0 < y < high
        assert size > 4


def test_letters_can_be_told_from_the_paper(browser: Browser, files: dict[str, Path]) -> None:
    """WCAG 2.2, 1.4.3 and 1.4.11: a contrast of at least 4.5 for letters, and of 3 for marks, in both schemes."""
    ratio = """(name => { const light = colour => { const part = document.createElement('canvas').getContext('2d');
        part.fillStyle = colour; const n = parseInt(part.fillStyle.slice(1), 16);
        return [[n >> 16, 0.2126], [n >> 8 & 255, 0.7152], [n & 255, 0.0722]].map(([v, w]) => { v /= 255;
        return w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4) }).reduce((a, b) => a + b) };
        const style = getComputedStyle(document.documentElement); const of = n => light(style.getPropertyValue(n));
        return Math.min(...['--paper', '--card'].map(p => { const [a, b] = [of(name), of(p)].sort((x, y) => x - y);
        return (b + 0.05) / (a + 0.05) })) })"""
    for dark in (False, True):
        browser.open(files["search"], width=1100, dark=dark)
        for name in ("ink", "muted", "main", "second", "third", "good", "bad"):
            assert browser.evaluate(f"{ratio}('--{name}')") >= 4.5, (name, dark)


def test_it_prints(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["search"], width=1100, dark=True)
    assert browser.printed().startswith(b"%PDF")
