"""`tersor.compile`, `plan` and `sites`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor import backend as backends
from tersor.backend import BackendName
from tersor.batches import Batch, plain_batches, split
from tersor.compiler import pipeline
from tersor.compiler import policy as model_policy
from tersor.compiler.diagnostics import BudgetError
from tersor.compiler.errors import CompilerBug, RequestError
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.signal import SIGNALS, SignalName
from tersor.compiler.pipeline import Planned
from tersor.compiler.plan import Foreseen, Plan
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.units import bytes_text
from tersor.finish import Finish, data_errors
from tersor.optimise import Settings, optimiser, shortfall, summed
from tersor.original import captured
from tersor.passes import METHODS
from tersor.policies import Policy, as_policy
from tersor.result import Result


@torch.inference_mode(False)
def compile(
    model: nn.Module,
    policy: str | Path | model_policy.Policy,
    example: Mapping[str, Any],
    data: Iterable[Mapping[str, Any]] | None = None,
    *,
    signal: SignalName | None = None,
    opaque: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
    backend: BackendName = "auto",
    metric: Callable[[nn.Module], Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compress a model as the policy says, and measure what became of it. The model itself is left as it was.

    `example` are keyword arguments of one `forward` call, `data` batches of them: every tenth batch judges the result,
    the others calibrate. Without data choices are judged by the error of the weights. `signal` says what of the
    outputs must stay (default: found from the model), `opaque` names submodules to keep as they are, `roles` overrides
    roles by path glob; `metric` is the function of a budget on `metric` that names none: it takes the module and
    returns a number, larger is better. `progress(stage, done, total)` is called now and then.

    Raises PolicyError, RequestError, CaptureError; BudgetError, which has the best result found, for a budget that
    cannot be met.
    """
    rules = as_policy(policy)
    check_names(signal, backend)
    batches = None if data is None else plain_batches(data)
    calibration, held_out = (None, []) if batches is None else split(batches)
    program = captured(model, example, opaque=opaque, roles=roles)
    settings = Settings(signal, backend, metric, progress)
    return build(program, rules, calibration, held_out, settings)


@torch.inference_mode(False)
def plan(
    model: nn.Module,
    policy: str | Path | model_policy.Policy,
    example: Mapping[str, Any],
    data: Iterable[Mapping[str, Any]] | None = None,
    *,
    signal: SignalName | None = None,
    opaque: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What `compile` would do, and why; nothing is rewritten or written. Arguments and errors as in `compile`."""
    rules = as_policy(policy)
    check_names(signal, "auto")
    calibration = None if data is None else split(plain_batches(data))[0]
    program = captured(model, example, opaque=opaque, roles=roles, share=True)
    return planned(program, rules, calibration, signal, progress).plan


@torch.inference_mode(False)
def sites(model: nn.Module, example: Mapping[str, Any], *, opaque: Sequence[str] = ()) -> tuple[Site, ...]:
    """The parts of a model that a policy can name, in the order of their first use. Raises CaptureError."""
    return captured(model, example, opaque=opaque, share=True).sites


def check_names(signal: str | None, backend: str) -> None:
    """Raise RequestError for a signal or a backend that does not exist."""
    backends.check_backend(backend)
    if signal is not None and signal not in SIGNALS:
        raise RequestError(f"there is no signal `{signal}`; there are {', '.join(SIGNALS)}")


def planned(
    program: Program,
    policy: Policy,
    calibration: Sequence[Batch] | None,
    signal: SignalName | None = None,
    progress: Progress | None = None,
) -> Planned:
    """The plan of a captured program; for budgets on more than size, one artifact is measured on the way."""
    with data_errors(program, calibration or ()):
        if not summed(policy):
            return pipeline.plan(program, policy, METHODS, calibration, signal=signal, progress=progress)
        asked = optimiser(program, policy, calibration, Settings(signal, progress=progress))
        loop = asked.loop()
        settled = loop.run(rounds=1)
        found = loop.plan()
        if isinstance(found, pipeline.Unsolved):
            raise shortfall(asked, replace(settled, why=found.why)) or CompilerBug("a plan was lost")
    expected = loop.predicted(found)
    limits = tuple(
        Foreseen(x.name, x.limit, expected.get(x.name), x.foreseen(expected.get(x.name))) for x in asked.limits
    )
    return replace(found, plan=replace(found.plan, budgets=limits))


def build(
    program: Program,
    policy: Policy,
    calibration: Sequence[Batch] | None,
    held_out: Sequence[Batch],
    settings: Settings,
    *,
    fingerprint: str = "",
    keep: Callable[[Result], object] = lambda result: None,
) -> Result:
    """The result of a captured program: plan, rewrite, lower, measure, and so on until every budget holds.

    `keep` is called with every result that is the best so far (without the fingerprint, which says that nothing more
    is to be done). BudgetError with the best result where a budget is missed in the end.
    """
    finish = Finish(program, policy, calibration, held_out, settings)
    with data_errors(program, calibration or ()):
        asked = optimiser(program, policy, calibration, settings)
        if not summed(policy):
            try:
                return finish(pipeline.planned(asked.prepared), fingerprint=fingerprint)
            except BudgetError as impossible:
                nearest = finish(pipeline.smallest(asked.prepared))
                keep(nearest)
                note = "the smallest artifact is kept: " + bytes_text(nearest.plan.bytes)
                told = [replace(d, notes=(*d.notes, note)) for d in impossible.diagnostics]
                raise BudgetError(told, nearest) from None
        settled = asked.loop(lambda contender: keep(finish(contender.planned, asked.limits, contender))).run()
        problem = shortfall(asked, settled)
        best = settled.best
        result = finish(best.planned, asked.limits, best, fingerprint="" if problem else fingerprint)
        if problem is not None:
            raise BudgetError(problem.diagnostics, result)
        return result
