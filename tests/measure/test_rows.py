"""Prices found some rows at a time against whole weights packed and judged; and error forms held as triangles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.captured import captured
from tests.measure.test_second_order import batches

from tersor.compiler.candidate import Candidate, Step, pack
from tersor.compiler.measure import rows
from tersor.compiler.measure.damage import SecondOrder, relative_error
from tersor.compiler.measure.forms import BLOCK, Form
from tersor.compiler.measure.rows import Price, price_rows
from tersor.compiler.measure.shelf import Shelf
from tersor.compiler.measure.signal import SIGNALS
from tersor.compiler.measure.size import described_bytes
from tersor.compiler.method import Method, Refusal
from tersor.compiler.site import Site
from tersor.compiler.slots import parameter_of
from tersor.passes import METHODS

APART = [m for m in METHODS if m.by_row]
CANDIDATES = [Candidate((Step(m, point),), (0, 0)) for m in APART for point in m.examples()]

EXPONENT = len(',"exponent":-15')
"""Rows may have another power of two in common than the whole, or none: that much of the description may differ."""


def matrices() -> list[Site]:
    return [s for s in captured("bert")[2].sites if s.kind in ("linear", "embedding")]


@pytest.mark.parametrize("rows_at_a_time", [1, 5])
def test_prices_are_those_of_the_whole_weight(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = captured("bert")[2]
    damage = SecondOrder(program, batches("bert"), SIGNALS["embedding"])
    for site in matrices():
        monkeypatch.setattr(rows, "WEIGHTS", rows_at_a_time * site.shape[1])
        weight = parameter_of(program.module, site)
        stores = [pack(weight, c.steps) for c in CANDIDATES]
        changes = [s.dense() - weight for s in stores if not isinstance(s, Refusal)]
        assert len(changes) == len(CANDIDATES)
        expected = list(damage.score(site, changes))
        for price, store, change, score in zip(
            price_rows(site, weight, CANDIDATES, damage), stores, changes, expected, strict=True
        ):
            assert isinstance(price, Price)
            assert not isinstance(store, Refusal)
            assert abs(price.bytes - described_bytes(site, store)) <= EXPONENT
            assert price.error == pytest.approx(relative_error(weight, change), rel=1e-3)
            assert price.damage == (None if score is None else pytest.approx(score, rel=1e-2, abs=1e-12))


@pytest.mark.parametrize("method", APART, ids=lambda m: m.id)
def test_rows_are_packed_whatever_the_others_are(method: Method[Any]) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 40)[:, None]
    for point in method.examples():
        whole, part = method.pack(weight, point).dense(), method.pack(weight[7:19], point).dense()
        assert torch.equal(whole[7:19], part)


@pytest.mark.parametrize("width", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_a_form_is_its_triangle(width: int) -> None:
    x = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(0))
    form = Form(width)
    for part in x:
        form.add(part)
    flat = x.reshape(-1, width)
    torch.testing.assert_close(form.dense(), flat.T @ flat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((form + form).dense(), 2 * form.dense())
    assert width < 2 * BLOCK or form.nbytes < 0.75 * 4 * width**2


def test_a_shelf_gives_back_what_was_put_there() -> None:
    forms = {name: Form(width) for name, width in (("a", 3), ("b", BLOCK + 1))}
    for seed, form in enumerate(forms.values()):
        form.add(torch.randn(4, form.width, generator=torch.Generator().manual_seed(seed)))
    shelf = Shelf(forms)
    shelf.put({"c": forms["b"], "d": forms["b"]})
    assert list(shelf) == ["a", "b", "c", "d"]
    assert torch.equal(shelf["a"].dense(), forms["a"].dense())
    assert all(torch.equal(shelf[name].dense(), forms["b"].dense()) for name in "bcd")
    assert shelf.get("e") is None
