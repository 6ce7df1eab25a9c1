"""The stores of plans: each is packed once, and kept as it would lie in an artifact for every later plan and run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.forms import Form, product_forms
from tersor.compiler.measure.ledger import Ledger
from tersor.compiler.measure.price import Choice, pack_chosen
from tersor.compiler.measure.shelf import Shelf
from tersor.compiler.memory import give_back
from tersor.compiler.program import Program
from tersor.compiler.resolve import Resolution
from tersor.compiler.stores import Store, from_state
from tersor.compiler.stores.base import join

FORM_BYTES = 256 * 2**20
"""Error forms of more than this are measured again by a later run rather than kept."""
STORE_BYTES = 512 * 2**20
"""Stores beyond this many bytes of a run are packed again by the next one."""
ABOUT = "about"
"""The array that describes a store, as the bytes of JSON: one entry holds all of it."""


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


class Packed:
    """Stores by site and choice. Those of the plan made last are held, so that a plan that differs in a few sites packs
    only those; those that take data to find are in the ledger too. `formed` are the sites whose store knew the form of
    its error."""

    def __init__(self, program: Program, resolution: Resolution, forms: Forms, ledger: Ledger) -> None:
        self.program, self.resolution, self.forms, self.ledger = program, resolution, forms, ledger
        self.held: dict[str, tuple[str, Store]] = {}
        self.formed: set[str] = set()
        self.kept = 0

    def of(self, chosen: Mapping[str, Choice]) -> dict[str, Store]:
        """The stores of an allocation."""
        changed = {name: c for name, c in chosen.items() if self.held.get(name, ("",))[0] != c.text}
        for name in changed:
            self.held.pop(name, None)  # before the new one is made
        missing = {}
        for name, choice in changed.items():
            store = self._recalled(choice)
            if store is None:
                missing[name] = choice
            else:
                self.held[name] = choice.text, store
        forms = self.forms.of(missing)
        for name, store in pack_chosen(self.program, self.resolution, missing, forms).items():
            self.held[name] = missing[name].text, store
            if name in forms:
                self.formed.add(name)
            self._keep(missing[name], store)
        return {name: self.held[name][1] for name in chosen}

    def _recalled(self, choice: Choice) -> Store | None:
        if not _costly(choice):
            return None
        arrays = self.ledger.recall_arrays(_key(choice))
        if arrays is None:
            return None
        about = json.loads(bytes(arrays[ABOUT].tolist()))
        if about["formed"]:
            self.formed.add(choice.site)
        return from_state(about["spec"], arrays.get, choice.site)

    def _keep(self, choice: Choice, store: Store) -> None:
        if not _costly(choice) or self.kept + store.nbytes() > STORE_BYTES:
            return
        self.kept += store.nbytes()
        about = json.dumps({"spec": store.spec(), "formed": choice.site in self.formed}).encode()
        arrays = {join(choice.site, name): array for name, array in store.state().items()}
        self.ledger.keep_arrays(_key(choice), arrays | {ABOUT: torch.tensor(list(about), dtype=torch.uint8)})


def _costly(choice: Choice) -> bool:
    return choice.candidate is not None and choice.candidate.wants_form and not choice.candidate.scoped


def _key(choice: Choice) -> str:
    return f"store {choice.site} {choice.text}"
