"""How a run ends: usage errors, user errors, bugs, interrupts, a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tersor.catalogue

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("plan",), ("plan", "tiny_models:model"), ("bench", "x", "--batch", "0"), ("show", "--nonsense")],
)
def test_usage_errors(run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage" in ran.err


def test_version_and_help(run) -> None:
    assert run("--version").out == f"tersor {tersor.__version__}\n"
    helped = run("--help")
    assert helped.code == 0
    for command in ("check", "fmt", "sites", "methods", "plan", "compile", "bench", "show"):
        assert f"\n  {command} " in helped.out


def test_a_bug_asks_for_a_report(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(tersor.catalogue, "methods", broken)
    ran = run("methods")
    assert ran.code == 1
    assert "ZeroDivisionError: planted" in ran.err
    assert "this is a bug of tersor; please report" in ran.err
    assert 'File "' in ran.err


def test_an_interrupt(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tersor.catalogue, "methods", interrupted)
    ran = run("methods")
    assert ran.code == 130
    assert "bug" not in ran.err


def test_an_error_is_a_json_document_too(run) -> None:
    ran = run("show", "nothing_here", "--json")
    assert ran.code == 2
    assert ran.json["error"]["exit_code"] == 2
    assert "nothing_here is not an artifact" in ran.json["error"]["message"]


def test_a_closed_pipe_is_no_bug() -> None:
    """The reader is gone before anything is written."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tersor", "methods", "--json"], stdout=write, stderr=subprocess.PIPE, env=environment
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def test_policies_are_checked_without_transformers() -> None:
    code = "import sys, tersor.cli, tersor.policies, tersor.catalogue; print('transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr
