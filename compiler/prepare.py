"""What is measured before the first plan: capture -> resolve -> measure. A plan for any budget follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.damage import Damage, SecondOrder, WeightError
from tersor.compiler.measure.forms import Form, product_forms
from tersor.compiler.measure.ledger import Forgetful, Ledger
from tersor.compiler.measure.price import Choice, Measurements, measure, pack_chosen
from tersor.compiler.measure.shelf import Shelf
from tersor.compiler.measure.signal import SIGNALS, Signal, SignalName, signal_of
from tersor.compiler.memory import give_back
from tersor.compiler.method import Method
from tersor.compiler.policy import Policy
from tersor.compiler.program import Program
from tersor.compiler.resolve import Resolution, refused_everywhere, resolve
from tersor.compiler.stores import Store

FORM_BYTES = 256 * 2**20
"""Error forms of more than this are measured again by a later run rather than kept."""


class Forms:
    """The error forms of the sites that may want one, measured when first asked."""

    def __init__(
        self,
        program: Program,
        resolution: Resolution,
        batches: Sequence[Batch],
        known: Mapping[str, Form],
        ledger: Ledger,
        progress: Progress | None,
    ) -> None:
        self.program, self.batches, self.ledger, self.progress = program, batches, ledger, progress
        self.known = Shelf(known)
        self.asked = set(known)
        self.wanting = [d.site for d in resolution.decisions if any(c.wants_form for c in d.candidates)]

    def of(self, chosen: Mapping[str, Choice]) -> Mapping[str, Form]:
        """The forms of the chosen candidates that want one."""
        wanted = {c.site for c in chosen.values() if c.candidate is not None and c.candidate.wants_form}
        if not any(s.name in wanted and s.name not in self.asked for s in self.wanting):
            return self.known
        missing = []
        for site in self.wanting:
            self.asked.add(site.name)
            if site.name not in self.known:
                kept = self.ledger.recall_arrays(f"form {site.name}")
                if kept is not None:
                    self.known.put({site.name: Form.of(kept)})
                elif site.kind in ("linear", "recurrent"):
                    missing.append(site)
        if missing:
            found = product_forms(self.program, missing, self.batches, self.progress)
            self.known.put(found)
            if sum(form.nbytes for form in found.values()) <= FORM_BYTES:
                for name, form in found.items():
                    self.ledger.keep_arrays(f"form {name}", form.arrays())
            del found
            give_back()
        return self.known


@dataclass
class Packed:
    """The stores of the plan made last: a plan that differs in a few sites packs only those."""

    stores: dict[str, tuple[str, Store]] = field(default_factory=dict)

    def of(self, prepared: Prepared, chosen: Mapping[str, Choice]) -> dict[str, Store]:
        """The stores of an allocation."""
        changed = {name: c for name, c in chosen.items() if self.stores.get(name, ("",))[0] != c.text}
        for name in changed:
            self.stores.pop(name, None)  # before the new one is made
        made = pack_chosen(prepared.program, prepared.resolution, changed, prepared.forms.of(chosen))
        self.stores |= {name: (changed[name].text, store) for name, store in made.items()}
        return {name: self.stores[name][1] for name in chosen}


@dataclass(frozen=True)
class Prepared:
    """A model with every choice measured; `examples` is how many the damage was judged on."""

    program: Program
    policy: Policy
    resolution: Resolution
    measured: Measurements
    forms: Forms
    examples: int
    packed: Packed = field(default_factory=Packed)


def prepare(
    program: Program,
    policy: Policy,
    methods: Sequence[Method[Any]],
    batches: Sequence[Batch] | None = None,
    *,
    signal: SignalName | None = None,
    progress: Progress | None = None,
    ledger: Ledger = Forgetful(),
) -> Prepared:
    """Resolve the rules, price and judge every candidate. Raises PolicyError for rules that do not fit the model."""
    resolution = resolve(program.sites, policy, methods)
    check_data(resolution, batches)
    damage, examples = scorer(program, batches, signal, progress)
    measured = measure(program, resolution, damage, progress, ledger)
    check_packed(policy, methods, resolution, measured)
    forms = Forms(program, resolution, batches or (), damage.forms, ledger, progress)
    del damage  # its traces are as large as the model
    give_back()
    return Prepared(program, policy, resolution, measured, forms, examples)


def scorer(
    program: Program,
    batches: Sequence[Batch] | None,
    signal: SignalName | None,
    progress: Progress | None,
) -> tuple[Damage, int]:
    """The damage score: second order with calibration data, weight error without; and the examples it saw."""
    if batches is None:
        return WeightError(), 0
    chosen: Signal = SIGNALS[signal] if signal else signal_of(program)
    second_order = SecondOrder(program, batches, chosen, progress=progress)
    return second_order, second_order.schedule.examples


def check_data(resolution: Resolution, batches: Sequence[Batch] | None) -> None:
    """Refuse methods that need calibration data when there is none."""
    if batches is not None:
        return
    wanting = {c.span: c.text for d in resolution.decisions for c in d.candidates if c.wants_form}
    if wanting:
        raise PolicyError(
            Diagnostic(
                "E204", f"`{text}` needs calibration data", span, help="give data, or choose `rounding = nearest`"
            )
            for span, text in wanting.items()
        )


def check_packed(
    policy: Policy, methods: Sequence[Method[Any]], resolution: Resolution, measured: Measurements
) -> None:
    """Refuse options that turned out to fit nowhere only when they were packed (`uniform() then svd()`)."""
    alive = {c.candidate.option for choices in measured.choices.values() for c in choices if c.candidate}
    problems = list(refused_everywhere(policy, methods, resolution.decisions, alive, measured.refused))
    if problems:
        raise PolicyError(problems)
