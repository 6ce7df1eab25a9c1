"""How a command ends: an exit code and a message for every kind of failure, and what is shown while it runs."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.errors import TersorError

INTERRUPTED, BROKEN_PIPE, BUG = 130, 141, 1
FRAMES = 5


def guarded(command: Callable[[], object], as_json: bool) -> int:
    """Run a command; its exit code, whatever ended it. With `as_json` an error is a document on stdout too."""
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        # The libraries that print turn a broken pipe into 1, which is ours for a bug; nothing else of theirs is 1.
        return _reader_gone() if end.code == 1 else int(end.code or 0)
    except TersorError as problem:
        return _user_error(problem, as_json)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except Exception as bug:  # noqa: BLE001 - the last line of defence says that it is our fault
        return _bug(bug)
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _reader_gone() -> int:
    """Nothing more can be said, also not when the interpreter flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _user_error(problem: TersorError, as_json: bool) -> int:
    if isinstance(problem, PolicyError):
        report(problem.diagnostics)
    else:
        _say(f"error: {problem}")
    if as_json:
        found = [diagnostic_json(d) for d in problem.diagnostics] if isinstance(problem, PolicyError) else []
        message = found[0]["message"] if found else str(problem)
        print_json({"error": {"exit_code": problem.exit_code, "message": message, "diagnostics": found}})
    return problem.exit_code


def _bug(bug: Exception) -> int:
    frames = "".join(traceback.format_tb(bug.__traceback__)[-FRAMES:])
    _say(f"{frames}{type(bug).__name__}: {bug}")
    _say("this is a bug of tersor; please report it with the lines above and what you ran")
    return BUG


def report(diagnostics: Sequence[Diagnostic]) -> None:
    """Diagnostics on stderr: with excerpts for a person, one line each for a program."""
    if sys.stderr.isatty():
        _say("\n\n".join(d.render() for d in diagnostics))
    else:
        for diagnostic in diagnostics:
            _say(diagnostic.line())


def diagnostic_json(d: Diagnostic) -> dict[str, Any]:
    line, column = d.span.where() if d.span else (None, None)
    return {
        "code": d.code,
        "severity": d.severity,
        "message": d.message,
        "file": d.span.source.name if d.span else None,
        "line": line,
        "column": column,
        "start": d.span.start if d.span else None,
        "end": d.span.end if d.span else None,
        "notes": list(d.notes),
        "help": d.help,
    }


def print_json(document: Any) -> None:
    """The one document of a command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr when that is a terminal, else None: `call(stage, done, total)`."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update
