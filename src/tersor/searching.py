"""`tersor.search`: the best artifact within some budgets, the policy that reproduces it, and the Pareto front."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor import api
from tersor.backend import BackendName
from tersor.batches import Batch, plain_batches, split
from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.forecast import Forecast
from tersor.compiler.front import Sizes, front
from tersor.compiler.loop import DAMAGE, Contender, Deadline, Loop, Settled
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.ledger import Forgetful, Ledger
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.program import Program
from tersor.compiler.report import FrontPoint, Made, Measured, SearchReport, form_of
from tersor.compiler.units import bytes_text
from tersor.finish import Finish, data_errors
from tersor.made import made
from tersor.optimise import Optimiser, Settings, optimiser, shortfall
from tersor.original import captured
from tersor.policies import Policy, as_policy
from tersor.result import PAGE, POLICY, SEARCH, Result
from tersor.spaces import default_space
from tersor.written import written

FRONT_CSV, FRONT_JSON = "front.csv", "front.json"


@dataclass(frozen=True)
class Found:
    """What a search came to. `missed` says which budget the best artifact misses; None when it holds them all."""

    result: Result
    report: SearchReport
    missed: PolicyError | None
    searcher: Searcher = field(repr=False, compare=False)

    def again(
        self,
        *,
        size: str | None = None,
        latency: str | Sequence[str] | None = None,
        memory: str | None = None,
        out: str | Path | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Found:
        """The best model within other budgets, from the same measurements; budgets on what is not named stay. With
        `out` the artifact is written there."""
        asked = with_budgets(self.searcher.policy, budgets(size, latency, memory))
        keep = None if out is None else partial(_save, Path(out))
        found = self.searcher.find(asked, keep, Deadline(seconds), progress)
        if out is not None:
            found.save(out)
        return found

    @property
    def policy(self) -> str:
        """The text of a policy that reproduces the result."""
        return self.report.policy

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        return self.report.front

    def documents(self) -> dict[str, bytes]:
        """The files that a search adds to an artifact."""
        from tersor.page.render import page  # what draws charts is loaded where some are drawn

        return {
            POLICY: self.policy.encode(),
            FRONT_CSV: front_csv(self.front).encode(),
            FRONT_JSON: _json([vars(point) for point in self.front]),
            SEARCH: _json(self.report.to_json()),
            PAGE: page(self.report),
        }

    def save(self, folder: str | Path, extra: Mapping[str, bytes] = {}) -> Path:
        """Write the artifact with the policy, the front, `search.json` and `report.html` beside it. Raises
        RequestError."""
        return self.result.save(folder, {**self.documents(), **extra})


@torch.inference_mode(False)
def search(
    model: nn.Module,
    example: Mapping[str, Any],
    data: Iterable[Mapping[str, Any]] | None = None,
    *,
    size: str | None = None,
    latency: str | Sequence[str] | None = None,
    memory: str | None = None,
    policy: str | Path | Policy | None = None,
    out: str | Path | None = None,
    seconds: float | None = None,
    signal: SignalName | None = None,
    backend: BackendName = "auto",
    metric: Callable[[nn.Module], Any] | None = None,
    progress: Progress | None = None,
) -> Found:
    """The best model within the budgets, written as in a policy: `size="12 MB"`, `latency="8 ms at tokens = 128"`.

    Without a policy every weight may take any form of the default space; a policy says what may be done, and its
    budgets hold beside those given here. With `out` everything measured is kept in that folder, and the best artifact
    so far is always there. `seconds` is how long it may take. Raises as `compile` does, but for a budget that is
    missed: `missed` tells.
    """
    from tersor.journal import Journal
    from tersor.saved import check_out, mark_of

    api.check_names(signal, backend)
    asked = budgets(size, latency, memory)
    given = None if policy is None else as_policy(policy)
    batches = None if data is None else plain_batches(data)
    calibration, held_out = (None, []) if batches is None else split(batches)
    ledger: Ledger = Forgetful()
    if out is not None:
        check_out(Path(out))
        ledger = Journal(Path(out), mark_of(model, calibration, signal))
    settings = Settings(signal, backend, metric, progress, ledger, deadline=Deadline(seconds))
    program = captured(model, example)
    keep = None if out is None else partial(_save, Path(out))
    rules = with_budgets(given or default_space(program, calibration is not None, backend), asked)
    name = type(model).__name__
    found = Searcher(program, rules, calibration, held_out, settings, name, made("", "")).find(keep=keep)
    if out is not None:
        found.save(out)
    return found


def _save(folder: Path, result: Result) -> None:
    result.save(folder)


def budgets(size: str | None, latency: str | Sequence[str] | None, memory: str | None, minimize: str = "") -> Policy:
    """The budgets as a policy; each is read as in a policy text, and its mistakes are told with its own name."""
    texts = [("size", size), *(("latency", x) for x in ([latency] if isinstance(latency, str) else latency or ()))]
    texts.append(("memory", memory))
    found = [Policy.parse(f"budget {name} <= {text}", f"--{name}").budgets for name, text in texts if text is not None]
    objective = Policy.parse(f"minimize {minimize}", "--minimize").objective if minimize else Policy().objective
    return Policy(budgets=tuple(b for group in found for b in group), objective=objective)


def with_budgets(space: Policy, asked: Policy) -> Policy:
    """A space with the budgets asked for, which take the place of its own on the same quantity at the same inputs."""
    named = {(b.quantity, b.metric, b.at) for b in asked.budgets}
    own = tuple(b for b in space.budgets if (b.quantity, b.metric, b.at) not in named)
    objective = asked.objective if asked.objective.span is not None else space.objective
    return replace(space, budgets=(*asked.budgets, *own), objective=objective)


@dataclass
class Stages:
    """Seconds by stage, from the progress that is told."""

    tell: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now
        if self.tell:
            self.tell(stage, done, total)


class Searcher:
    """A captured program with everything measured: asked for one set of budgets after another."""

    def __init__(
        self,
        program: Program,
        policy: Policy,
        calibration: Sequence[Batch] | None,
        held_out: Sequence[Batch],
        settings: Settings,
        name: str,
        origin: Made,
    ) -> None:
        self.program, self.policy, self.calibration = program, policy, calibration or ()
        self.name, self.origin = name, origin
        self.stages, self.sizes = Stages(settings.progress), Sizes()
        self.forecasts: dict[str, Forecast] = {}
        self.settings = replace(settings, progress=self.stages)
        self.finish = Finish(program, policy, calibration, held_out, settings)
        with data_errors(program, self.calibration):
            self.optimiser = optimiser(program, policy, calibration, self.settings)

    def find(
        self,
        policy: Policy | None = None,
        keep: Callable[[Result], object] | None = None,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
    ) -> Found:
        """The best within the budgets of a policy with the same rules (default: those measured for); `keep` is called
        with every result that is the best so far."""
        stages = self.stages if policy is None else Stages(progress)
        asked = self.optimiser
        results: dict[int, Result] = {}

        def better(contender: Contender) -> None:
            results.clear()
            finished = self.finish(contender.planned, asked.limits, contender)
            results[id(contender)] = replace(finished, policy=policy or self.policy)
            if keep is not None:
                keep(results[id(contender)])

        with data_errors(self.program, self.calibration):
            if policy is not None:
                asked = asked.again(policy, replace(self.settings, progress=stages, deadline=deadline or Deadline()))
            loop = asked.loop(better, self.forecasts)
            settled = loop.run()
        self.forecasts |= settled.forecasts
        result = results[id(settled.best)]
        missed = shortfall(asked, settled)
        told = tuple(explained(d) for d in missed.diagnostics) if missed else ()
        return Found(result, self._report(asked, loop, settled, result, stages.seconds, told), missed, self)

    def _report(
        self,
        asked: Optimiser,
        loop: Loop,
        settled: Settled,
        result: Result,
        seconds: Mapping[str, float],
        missed: tuple[str, ...],
    ) -> SearchReport:
        best, plan = settled.best.planned, result.plan
        heading = [
            f"Found for {self.name}: {bytes_text(plan.bytes)} of {bytes_text(plan.original_bytes)}, "
            f"damage {plan.damage:.3g} {plan.unit} predicted",
            *(f"{b.name}: {b.text}" for b in result.report.budgets if b.name != "size"),
            "Every rule is one form and the weights it was found for; compile with it to get this artifact again.",
        ]
        text = written(plan, loop.prepared.program.sites, best.allocation.chosen, asked.prepared.policy, heading)
        return SearchReport(
            model=self.name,
            plan=plan,
            forms=tuple(form_of(row.site, best.stores[row.site]) for row in plan.sites),
            budgets=result.report.budgets,
            front=front(loop, best, self.sizes),
            contenders=tuple(
                Measured(c.planned.plan.bytes, {DAMAGE: c.planned.plan.damage, **c.predicted}, c.measured)
                for c in settled.contenders
            ),
            fidelity=result.report.fidelity.to_json() if result.report.fidelity else None,
            policy=text,
            seconds=dict(seconds),
            made=self.origin,
            original=asked.original(),
            missed=missed,
            notes=result.report.notes,
        )


def explained(diagnostic: Diagnostic) -> str:
    """A message with its notes and what would help, in one paragraph."""
    helped = (diagnostic.help,) if diagnostic.help else ()
    return "; ".join((diagnostic.message, *diagnostic.notes, *helped))


def front_csv(points: Sequence[FrontPoint]) -> str:
    """One row a point: bytes, predicted damage, predicted costs, whether the other budgets hold, which was taken."""
    names = list(dict.fromkeys(name for point in points for name in point.costs))
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["bytes", "damage", *names, "met", "chosen"])
    for p in points:
        rows.writerow([p.bytes, p.damage, *(p.costs.get(name, "") for name in names), p.met, p.chosen])
    return out.getvalue()


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
