"""What it does to the outputs that integer kernels round their inputs to 8 bits, site by site.

For a linear y = x W^T whose kernel rounds x with a scale for every group of columns of a row,

    x_g -> a_g round(x_g / a_g),   a_g = max|x_g| / 127

is a change of the outputs like any other (`changes`): it is measured with the original weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tersor.compiler.measure.changes import Change, Changes, Leaves, Replaced
from tersor.compiler.measure.ledger import digest
from tersor.compiler.measure.price import Choice, Choices
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import slots

Place = tuple[str, int]
"""A site, and how many columns of its input share a scale."""


class Inputs:
    """The changes by site and group of columns. Where no site has a choice of groups, the change of all of them
    together: it is a part of every plan, and of no choice."""

    def __init__(self, program: Program, choices: Choices, changes: Changes) -> None:
        self.changes = changes
        self.leaves: dict[Place, Mapping[str, nn.Linear]] = {}
        sites = {site.name: site for site in program.sites}
        for name, choice in ((name, c) for name, site in choices.items() for c in site):
            group = _group(choice)
            if group is not None and (name, group) not in self.leaves and (found := linears(program, sites[name])):
                self.leaves[name, group] = found
        self.alike = len({site for site, _ in self.leaves}) == len(self.leaves)
        self.found: dict[tuple[Place, ...], Change] = {}

    def measure(self) -> None:
        """Measure what was not measured yet."""
        places = list(self.leaves)
        parts = [tuple(places)] if self.alike and places else [(place,) for place in places]
        keys = {part: _key(part) for part in parts if part not in self.found}
        kept = {part: self.changes.known(key) for part, key in keys.items()}
        missing = [part for part, change in kept.items() if change is None]
        replaced = {keys[part]: self._replaced(part) for part in missing}
        made = self.changes.measure("measuring activations", replaced) if replaced else {}
        self.found |= {part: change or made[keys[part]] for part, change in kept.items()}

    def of(self, chosen: Iterable[Choice]) -> list[Change]:
        """What the kernels of some choices do by rounding their inputs, as far as it is known."""
        places = [(c.site, group) for c in chosen if (group := _group(c)) is not None]
        if self.alike:
            return list(self.found.values()) if places else []
        return [self.found[place,] for place in places if (place,) in self.found]

    def damage(self, choice: Choice) -> float:
        """What the kernel of a choice does by itself."""
        return 0.0 if self.alike else sum(change.damage for change in self.of([choice]))

    def _replaced(self, places: Sequence[Place]) -> Replaced:
        leaves = [(path, leaf, group) for site, group in places for path, leaf in self.leaves[site, group].items()]

        def rounding() -> Leaves:
            return {path: Rounding(leaf, group) for path, leaf, group in leaves}

        return Replaced(tuple(path for path, *_ in leaves), rounding)


def _key(places: Sequence[Place]) -> str:
    if len(places) == 1:
        return "input {} {}".format(*places[0])
    return f"inputs {digest(places)}"


def _group(choice: Choice) -> int | None:
    return choice.candidate.input_group if choice.candidate else None


def linears(program: Program, site: Site) -> Mapping[str, nn.Linear]:
    """The linears that read a weight, by path. A recurrent layer's state is no input of the graph, and bounded."""
    paths = dict.fromkeys(slot.path for slot in slots(program.module, site)) if site.readers else ()
    leaves = ((path, program.module.get_submodule(path)) for path in paths)
    return {path: leaf for path, leaf in leaves if isinstance(leaf, nn.Linear)}


class Rounding(nn.Module):
    """A linear of its rounded input."""

    def __init__(self, leaf: nn.Linear, group: int) -> None:
        super().__init__()
        self.leaf, self.group = leaf, group

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leaf(rounded(x, self.group))
        return y


def rounded(x: Tensor, group: int) -> Tensor:
    """x (..., columns) in 8 bits, symmetric, with a scale for `group` columns of a row (0: for all of them)."""
    columns = x.shape[-1]
    group = min(group or columns, columns)
    parts = nn.functional.pad(x, (0, -columns % group)).unflatten(-1, (-1, group))
    scale = parts.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    whole: Tensor = ((parts * steps).round() * scale).flatten(-2)
    return whole[..., :columns]
