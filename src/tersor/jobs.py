"""What a command line asks for: model, policy and data read and checked before anything slow starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tersor import api, saved
from tersor.backend import BackendName, check_backend
from tersor.compiled import compiled
from tersor.compiler.errors import RequestError
from tersor.compiler.loop import Deadline
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.plan import Plan
from tersor.compiler.program import Program
from tersor.compiler.supported import check_supported
from tersor.data import Data, read_data
from tersor.journal import Journal
from tersor.made import made
from tersor.models import Model, read_model
from tersor.optimise import Settings
from tersor.original import captured
from tersor.policies import Policy
from tersor.report import Report
from tersor.result import PAGE
from tersor.searching import Found, Searcher, with_budgets
from tersor.spaces import default_space


def names(columns: str | None) -> tuple[str, ...]:
    """`a,b` as names."""
    return tuple(name.strip() for name in (columns or "").split(",") if name.strip())


def lengths(text: str) -> tuple[int, ...]:
    """`16,128` as lengths."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isdecimal() and int(part) > 0 for part in found):
        raise RequestError(f"--tokens {text}: give lengths separated by commas, such as 16,128")
    return tuple(int(part) for part in found)


def backend_named(name: str) -> BackendName:
    """The backend of a name."""
    check_backend(name)
    return cast(BackendName, name)


def deadline_of(text: str | None, began: float) -> Deadline:
    """`90s`, `10m`, `1h` after `began`, by `time.monotonic`."""
    if text is None:
        return Deadline(None, began)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if not found or float(found[1]) <= 0:
        raise RequestError(f"--time {text}: write a number of seconds, minutes or hours, such as 90s, 10m or 1h")
    return Deadline(float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]], began)


@dataclass(frozen=True)
class Job:
    """A model, a policy and the data to judge by."""

    model: Model
    policy: Policy
    data: Data | None
    signal: SignalName | None

    @classmethod
    def read(
        cls,
        model: str,
        policy: Path,
        data: str | None,
        columns: str | None,
        max_tokens: int,
        signal: str | None,
        out: Path | None = None,
    ) -> Job:
        """Read everything, the cheap things first. Raises RequestError and PolicyError."""
        rules = Policy.read(policy)
        check_supported(rules)
        api.check_names(signal, "auto")
        if out is not None:
            saved.check_out(out)
        if columns and data is None:
            raise RequestError("--columns names columns of --data, which is not given")
        given = read_model(model)
        examples = None if data is None else read_data(data, given, names(columns), max_tokens)
        return cls(given, rules, examples, cast("SignalName | None", signal))

    def program(self) -> Program:
        """The captured model, with notes on how it and the data were read."""
        found = captured(self.model.module, self.model.example)
        notes = (*self.model.notes, *(self.data.notes if self.data else ()), *found.notes)
        return replace(found, notes=notes)

    def plan(self, progress: Progress | None) -> Plan:
        """What would be done."""
        calibration = self.data.calibration if self.data else None
        return api.planned(self.program(), self.policy, calibration, self.signal, progress).plan

    def compile(
        self, out: Path, backend: str, force: bool, progress: Progress | None, command: str = ""
    ) -> tuple[bool, Report]:
        """Do it, unless `out` holds the outcome already: whether it was done, and the report. `command` is how it was
        asked for."""
        from tersor.page.render import page  # what draws charts is loaded where some are drawn

        kernels = backend_named(backend)
        calibration, held_out = (self.data.calibration, self.data.held_out) if self.data else (None, ())
        settings = {"signal": self.signal, "backend": backend, "calibration": len(calibration or ())}
        mark = saved.fingerprint(self.model.module, self.policy, (*(calibration or ()), *held_out), settings)
        finished = None if force else saved.finished(out)
        if finished is not None and finished[0] == mark:
            return False, finished[1]
        record = saved.calibration_record(self.data.source) if self.data else {}
        extra = {**saved.tokenizer_files(self.model.folder), **record}
        journal = Journal(out, saved.mark_of(self.model.module, calibration, self.signal))
        result = api.build(
            self.program(), self.policy, calibration, held_out, Settings(self.signal, kernels, None, progress, journal),
            fingerprint=mark, keep=lambda best: best.save(out, extra),
        )  # fmt: skip
        journal.close()
        origin = made(command, self.data.source if self.data else "")
        shown = page(compiled(Path(self.model.name).name, result, origin))
        result.save(out, {**extra, PAGE: shown})
        return True, result.report


@dataclass(frozen=True)
class Search:
    """A model, the budgets to meet, a space of choices (None: the default one) and the data to judge by."""

    model: Model
    space: Policy | None
    asked: Policy
    data: Data | None
    signal: SignalName | None

    @classmethod
    def read(
        cls,
        model: str,
        policy: Path | None,
        asked: Policy,
        data: str | None,
        columns: str | None,
        max_tokens: int,
        signal: str | None,
        out: Path,
    ) -> Search:
        """Read everything, the cheap things first. Raises RequestError and PolicyError."""
        space = None if policy is None else Policy.read(policy)
        check_supported(asked)
        api.check_names(signal, "auto")
        saved.check_out(out)
        if columns and data is None:
            raise RequestError("--columns names columns of --data, which is not given")
        given = read_model(model)
        examples = None if data is None else read_data(data, given, names(columns), max_tokens)
        return cls(given, space, asked, examples, cast("SignalName | None", signal))

    def run(self, out: Path, backend: str, deadline: Deadline, progress: Progress | None, command: str = "") -> Found:
        """Search, with the journal and the best artifact so far in `out`; `command` is how it was asked for."""
        kernels = backend_named(backend)
        calibration, held_out = (self.data.calibration, self.data.held_out) if self.data else (None, ())
        record = saved.calibration_record(self.data.source) if self.data else {}
        extra = {**saved.tokenizer_files(self.model.folder), **record}
        journal = Journal(out, saved.mark_of(self.model.module, calibration, self.signal))
        settings = Settings(self.signal, kernels, None, progress, journal, deadline=deadline)
        notes = (*self.model.notes, *(self.data.notes if self.data else ()))
        program = captured(self.model.module, self.model.example)
        program = replace(program, notes=(*notes, *program.notes))
        policy = with_budgets(self.space or default_space(program, calibration is not None, kernels), self.asked)
        name = Path(self.model.name).name
        origin = made(command, self.data.source if self.data else "")
        searcher = Searcher(program, policy, calibration, held_out, settings, name, origin)
        found = searcher.find(keep=lambda best: best.save(out, extra))
        journal.close()
        found.save(out, extra)
        return found
