"""A captured program and a policy to the best artifact within every budget: prepare, then plan and measure in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tersor.backend import BackendName
from tersor.batches import Batch
from tersor.compiler.budget import Limit, infeasible, limits_of, shape_of, sought
from tersor.compiler.candidate import Candidate
from tersor.compiler.diagnostics import BudgetError, Diagnostic
from tersor.compiler.errors import RequestError
from tersor.compiler.forecast import Forecast
from tersor.compiler.loop import Contender, Deadline, Loop, Settled
from tersor.compiler.measure.clock import Shape, Timings
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.ledger import Forgetful, Ledger
from tersor.compiler.measure.pace import Pace
from tersor.compiler.measure.profit import profitable
from tersor.compiler.measure.seconds import MEMORY, with_costs
from tersor.compiler.measure.signal import SignalName, signal_of
from tersor.compiler.policy import Policy
from tersor.compiler.prepare import Prepared, prepare
from tersor.compiler.program import Program
from tersor.compiler.supported import check_supported
from tersor.judge import Judge
from tersor.metric import Function
from tersor.page.words import count
from tersor.passes import METHODS
from tersor.passes.quantize.int8 import Int8
from tersor.passes.quantize.uniform import Uniform
from tersor.timings import Timings as Kept


@dataclass(frozen=True)
class Settings:
    """How a program is optimised; the defaults are those of `tersor.compile`. `seconds` is how long it may take."""

    signal: SignalName | None = None
    backend: BackendName = "auto"
    metric: Function | None = None
    progress: Progress | None = None
    ledger: Ledger = field(default_factory=Forgetful)
    timings: Timings | None = None
    deadline: Deadline = field(default_factory=Deadline)


@dataclass(frozen=True)
class Optimiser:
    """A program with everything measured that a plan needs, for some budgets; `again` is for others. `prepared` has
    the choices that are worth planning with, `every` all of them."""

    prepared: Prepared
    every: Prepared
    limits: tuple[Limit, ...]
    minimize: str
    judge: Judge
    settings: Settings

    def again(self, policy: Policy, settings: Settings) -> Optimiser:
        """The same measurements for the budgets and the objective of another policy with the same rules; seconds and
        memory are measured where they were not asked for before. Errors as of `optimiser`."""
        contenders = self.every.contenders
        every = replace(self.every, policy=policy, contenders=contenders and contenders.fresh())
        return _asked(every, self.judge, settings)

    def loop(
        self,
        keep: Callable[[Contender], object] = lambda contender: None,
        forecasts: Mapping[str, Forecast] = {},
    ) -> Loop:
        """The closed loop for the budgets; `keep` is called with every contender that is the best so far, `forecasts`
        are what earlier artifacts taught."""
        told, deadline = self.settings.progress, self.settings.deadline
        return Loop(self.prepared, self.limits, self.minimize, self.judge, keep, deadline, told, forecasts)

    def original(self) -> dict[str, float]:
        """What the original takes of the budgets on time and metrics, by name, as far as there is time to see."""
        timed = [limit for limit in self.limits if limit.floor or limit.budget.quantity == "latency"]
        return {limit.name: self.judge.original(limit) for limit in timed if self.settings.deadline.left() > 0}


def summed(policy: Policy) -> bool:
    """Whether a policy asks for more than bytes and damage: then artifacts have to be measured on the way."""
    return policy.objective.quantity in ("latency", "metric") or any(b.quantity != "size" for b in policy.budgets)


def optimiser(program: Program, policy: Policy, batches: Sequence[Batch] | None, settings: Settings) -> Optimiser:
    """Measure everything. Raises PolicyError and RequestError for what the policy asks in vain."""
    check_supported(policy)
    asked = limits_of(policy, program)
    name = settings.signal or signal_of(program).name
    judge = Judge(program, asked, settings.backend, batches, name, settings.ledger, Pace(), settings.metric)
    prepared = prepare(
        program,
        policy,
        METHODS,
        batches,
        signal=settings.signal,
        progress=_in_time(settings),
        ledger=settings.ledger,
        kernels=settings.backend != "eager",
    )
    return _asked(prepared, judge, settings)


def _asked(prepared: Prepared, judge: Judge, settings: Settings) -> Optimiser:
    """What the budgets of the policy need besides, and their limits."""
    policy, program = prepared.policy, prepared.program
    asked = limits_of(policy, program)
    goal = sought(policy)
    judge = judge.asked(asked if goal is None else (*asked, goal), settings.metric)
    shapes = dict.fromkeys(limit.shape for limit in asked if limit.budget.quantity == "latency" and limit.shape)
    minimize: str = policy.objective.quantity if goal is None else goal.name
    if minimize == "latency":
        shape = next(iter(shapes), None) or shape_of(None, program)
        shapes[shape] = None
        minimize = str(shape)
    if summed(policy):
        prepared = timed(prepared, tuple(shapes), judge, settings)
    worth = replace(prepared, measured=profitable(prepared.measured, tuple(shapes), _is_int8))
    return Optimiser(worth, prepared, limits_of(policy, program, judge.original), minimize, judge, settings)


def _is_int8(candidate: Candidate) -> bool:
    (first, *rest) = candidate.steps
    return not rest and (isinstance(first.point, Int8) or (isinstance(first.point, Uniform) and first.point.bits == 8))


def timed(prepared: Prepared, shapes: Sequence[Shape], judge: Judge, settings: Settings) -> Prepared:
    """The same with the seconds of every choice at these shapes, and its memory, unless it has them."""
    wanted = {MEMORY, *map(str, shapes)}
    if all(wanted <= c.costs.keys() for choices in prepared.measured.choices.values() for c in choices):
        return prepared
    timings = settings.timings or Kept()
    measured = with_costs(
        prepared.program, prepared.measured, shapes, judge.engine, timings, judge.pace, _in_time(settings)
    )
    return replace(prepared, measured=measured)


def _in_time(settings: Settings) -> Progress:
    """Progress that ends the measuring when time is up: nothing can be planned yet, but all that was measured stays."""

    def update(stage: str, done: int, total: int) -> None:
        if settings.progress:
            settings.progress(stage, done, total)
        if settings.deadline.left() <= 0:
            raise OutOfTime(stage, done, total)

    return update


class OutOfTime(RequestError):
    """The time ran out before the first plan. Exit code 3, as for a budget that is not met."""

    exit_code = 3

    def __init__(self, stage: str, done: int, total: int) -> None:
        super().__init__(
            f"the time ran out while {stage} ({done} of {total}), before there was a plan: run the same again, it goes "
            f"on where this run ended, or give it more time"
        )


def shortfall(optimiser: Optimiser, settled: Settled) -> BudgetError | None:
    """What to tell when the best artifact misses a budget (exit code 3); None when it holds them all."""
    best = settled.best
    missed = [limit for limit in optimiser.limits if not limit.met(best.measured[limit.name])]
    if not missed:
        return None
    kept = f"the best artifact found is kept: {', '.join(f'{x.name} {x.text(best.measured[x.name])}' for x in missed)}"
    if settled.why is not None and settled.why.quantity in {limit.key for limit in optimiser.limits}:
        forecasts = settled.forecasts

        def real(limit: Limit, value: float) -> float:
            return float(best.planned.plan.bytes) if limit.key == "size" else forecasts[limit.key].real(value)

        found = infeasible(optimiser.prepared.program, settled.why, optimiser.limits, real)
        return BudgetError([replace(found, notes=(*found.notes, kept))])
    why = "the time ran out" if settled.out_of_time else f"after {count(len(settled.contenders), 'measured plan')}"
    return BudgetError(
        [
            Diagnostic(
                "E301",
                f"{limit.rule()} is not met: the best plan comes to {limit.text(best.measured[limit.name])} ({why})",
                limit.budget.span,
                notes=(kept,),
                help="give it more time" if settled.out_of_time else _help(limit, best.measured[limit.name]),
            )
            for limit in missed
        ]
    )


def _help(limit: Limit, value: float) -> str:
    change = "lower the floor" if limit.floor else "raise the budget"
    return f"{change} to {limit.text(value, up=not limit.floor)}, or allow other choices"
