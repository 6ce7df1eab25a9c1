"""The journal, and what a search does with it: killed at any moment, it goes on; out of room or time, it says so."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.optimise.models import batches, closeness, tiny
from torch import nn

import tersor
from tersor import judge
from tersor.compiler.errors import RequestError
from tersor.compiler.measure import pace, price, seconds
from tersor.journal import JOURNAL, Journal
from tersor.optimise import OutOfTime
from tersor.passes.quantize import uniform as compensate

KILLED, KILLS = 100, 10
"""Runs that are killed, and how many of them one after the other in the same folder."""
ASKED: dict[str, Any] = {"size": "25 kB", "latency": "1 s at batch = 1, tokens = 16", "backend": "eager"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(judge, "SECONDS", 0.01)
    monkeypatch.setattr(seconds, "SECONDS", 0.001)
    monkeypatch.setattr(pace, "FIRST", 0.01)


def entries(folder: Path) -> dict[str, int]:
    """The rows of a journal by key: a row that was written twice has another number."""
    if not (folder / JOURNAL).exists():
        return {}
    with sqlite3.connect(folder / JOURNAL) as file:
        try:
            return dict(file.execute("SELECT mark || key, rowid FROM entries"))
        except sqlite3.OperationalError:  # killed before there was a table
            return {}


def test_what_is_kept_is_there_for_the_next_run_and_no_other_model(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "model")
    journal.keep("price", {"a": [1, 0.1, None]})
    journal.keep_arrays("form", {"form": torch.arange(6.0).reshape(2, 3).T})
    again = Journal(tmp_path, "model")
    assert again.recall("price") == {"a": [1, 0.1, None]}
    arrays = again.recall_arrays("form")
    assert arrays is not None
    assert torch.equal(arrays["form"], torch.arange(6.0).reshape(2, 3).T)
    assert Journal(tmp_path, "another").recall("price") is None


def test_a_damaged_journal_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"no database at all" * 100)
    with pytest.raises(RequestError, match=r"journal\.sqlite is damaged: remove it"):
        Journal(tmp_path, "model")


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "model")
    journal.keep("first", 1)
    pages = journal._file.execute("PRAGMA page_count").fetchone()[0]
    journal._file.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite answers when the disk is full
    with pytest.raises(RequestError, match=r"full; what was found so far stays in"):
        journal.keep_arrays("large", {"values": torch.zeros(100_000)})
    assert Journal(tmp_path, "model").recall("first") == 1


def test_a_second_search_measures_nothing_and_another_budget_prices_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example = tiny()
    out = tmp_path / "out"
    first = tersor.search(model, example, batches(), out=out, **ASKED)
    before = entries(out)

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(price, "pack_each", refuse)
    monkeypatch.setattr(seconds, "_run", refuse)
    other = tersor.search(model, example, batches(), out=out, **{**ASKED, "size": "20 kB"})
    assert other.result.plan.bytes <= 20_000
    assert entries(out).items() >= before.items()
    monkeypatch.setattr(pace.Pace, "seconds", refuse)
    again = tersor.search(model, example, batches(), out=out, **ASKED)
    assert again.policy == first.policy
    assert entries(out).keys() >= before.keys()


def test_other_budgets_measure_and_pack_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for afterwards is what a search of its own would have found."""
    model, example = tiny()
    first = tersor.search(model, example, batches(), size="25 kB", out=tmp_path / "first")
    alone = tersor.search(model, example, batches(), size="18 kB", out=tmp_path / "alone")

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(price, "pack_each", refuse)
    other = first.again(size="18 kB", out=tmp_path / "other")
    assert other.policy == alone.policy
    assert [p.bytes for p in other.front if not p.chosen] == [p.bytes for p in alone.front if not p.chosen]
    files = [next((tmp_path / name).glob("weights-*")).read_bytes() for name in ("alone", "other")]
    assert files[0] == files[1]
    monkeypatch.setattr(compensate, "compensated", refuse)
    again = tersor.search(model, example, batches(), size="18 kB", out=tmp_path / "first")
    assert next((tmp_path / "first").glob("weights-*")).read_bytes() == files[0]
    assert again.result.plan.notes == other.result.plan.notes
    fast = first.again(latency="1 s at batch = 1, tokens = 16")
    assert {b.name.split()[0] for b in fast.result.report.budgets} == {"size", "latency"}
    assert fast.missed is None
    both = first.again(size="18 kB", latency="1 s at batch = 1, tokens = 16")
    assert both.report.contenders[0].predicted.keys() >= both.report.contenders[0].measured.keys()


def test_time_that_runs_out_before_a_plan_keeps_what_was_measured(tmp_path: Path) -> None:
    model, example = tiny()
    with pytest.raises(OutOfTime, match="it goes on where this run ended") as ended:
        tersor.search(model, example, batches(), out=tmp_path / "out", seconds=1e-9, **ASKED)
    assert ended.value.exit_code == 3
    assert entries(tmp_path / "out") or "calibrating" in str(ended.value)
    assert tersor.search(model, example, batches(), out=tmp_path / "out", **ASKED).missed is None


def test_a_metric_that_fails_is_told_with_its_place(tmp_path: Path) -> None:
    model, example = tiny()

    def broken(module: nn.Module) -> float:
        raise LookupError("no labels")

    policy = tersor.Policy.parse("budget metric >= 0.5\nfor linear choose uniform(bits = {4, 8}, group = row)")
    with pytest.raises(RequestError, match=r"the metric `broken` raised LookupError: no labels \(.*test_journal.py:"):
        tersor.compile(model, policy, example, batches(), metric=broken)
    with pytest.raises(RequestError, match="returned nan"):
        tersor.compile(model, policy, example, batches(), metric=lambda module: float("nan"))
    with pytest.raises(RequestError, match="names no function"):
        tersor.compile(model, policy, example, batches())


def test_a_missed_budget_carries_the_best_there_is() -> None:
    model, example = tiny()
    rules = "for linear or embedding choose uniform(bits = {2, 8}, group = row)\n"
    for budget, name in (("size <= 1 kB", "size"), ("latency <= 1 us at tokens = 8", "latency")):
        policy = tersor.Policy.parse(f"budget {budget}\n{rules}")
        with pytest.raises(tersor.BudgetError, match=f"{name}.* cannot be met") as missed:
            tersor.compile(model, policy, example, batches(), backend="eager")
        assert missed.value.exit_code == 3
        if name == "size":
            smallest = tersor.plan(model, tersor.Policy.parse(f"minimize size\n{rules}"), example, batches())
            assert missed.value.result.plan.bytes == smallest.bytes
        missed.value.result.module(**example)


def test_a_metric_is_the_objective_and_its_value_is_told() -> None:
    model, example = tiny()
    rules = "for linear or embedding choose uniform(bits = {2, 4, 8}, group = row)\n"
    policy = tersor.Policy.parse(f"budget size <= 20 kB\nmaximize metric\n{rules}")
    result = tersor.compile(model, policy, example, batches(), metric=closeness, backend="eager")
    assert result.plan.bytes <= 20_000
    assert f"metric comes to {closeness(result.module):.6g}, the most of what was tried" in result.report.notes
    with pytest.raises(RequestError, match="names no function"):
        tersor.compile(model, policy, example, batches())


def test_memory_may_be_a_share_of_the_originals() -> None:
    model, example = tiny()
    text = "budget memory <= 400%\nminimize size\nfor linear or embedding choose uniform(bits = 4, group = row)\n"
    result = tersor.compile(model, tersor.Policy.parse(text), example, batches(), backend="eager")
    (memory,) = result.report.budgets
    assert memory.met
    assert memory.limit > 4 * 35_000  # the original's weights at least


@pytest.mark.slow
@pytest.mark.parametrize("place", range(KILLED // KILLS))
def test_a_search_that_is_killed_at_any_moment_goes_on(place: int, tmp_path: Path) -> None:
    model, example = tiny()
    began = time.monotonic()
    whole = tersor.search(model, example, batches(), out=tmp_path / "whole", **ASKED)
    longest = time.monotonic() - began
    out, before, chance = tmp_path / "out", dict[str, int](), random.Random(place)
    for number in range(KILLS):
        child = os.fork()
        if child == 0:
            tersor.search(model, example, batches(), out=out, **ASKED)
            os._exit(0)
        # What is found in the end is found late, so the first ones end early.
        time.sleep(chance.uniform(0, longest * (number + 1) / KILLS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = entries(out)
        assert after.items() >= before.items()  # nothing lost, nothing measured twice
        before = after
        if (out / "manifest.json").exists():
            tersor.load(out, "eager")
    again = tersor.search(model, example, batches(), out=out, **ASKED)
    assert again.policy.split("minimize")[1] == whole.policy.split("minimize")[1]
    assert entries(out).items() >= before.items()
