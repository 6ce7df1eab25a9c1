"""What it does to the outputs that integer kernels round their inputs to 8 bits, site by site.

For a linear y = x W^T whose kernel rounds x with a scale for every group of columns of a row,

    x_g -> a_g round(x_g / a_g),   a_g = max|x_g| / 127

is a change of the outputs like any other (`changes`): it is measured with the original weights, once for every group
that a choice of the site has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tersor.compiler.measure.changes import Change, Changes, Leaves, Replaced
from tersor.compiler.measure.price import Choice, Choices
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import slots


class Inputs:
    """The changes by site and group of columns."""

    def __init__(self, program: Program, choices: Choices, changes: Changes) -> None:
        self.changes = changes
        self.leaves: dict[tuple[str, int], Mapping[str, nn.Linear]] = {}
        sites = {site.name: site for site in program.sites}
        for name, choice in ((name, c) for name, site in choices.items() for c in site):
            group = _group(choice)
            if group is not None and (name, group) not in self.leaves and (found := linears(program, sites[name])):
                self.leaves[name, group] = found
        self.found: dict[tuple[str, int], Change] = {}

    def measure(self) -> None:
        """Measure what was not measured yet."""
        keys = {place: "input {} {}".format(*place) for place in self.leaves if place not in self.found}
        kept = {place: self.changes.known(key) for place, key in keys.items()}
        missing = [place for place, change in kept.items() if change is None]
        replaced = {keys[p]: Replaced(tuple(self.leaves[p]), partial(self._rounding, p)) for p in missing}
        made = self.changes.measure("measuring activations", replaced) if replaced else {}
        self.found |= {place: change or made[keys[place]] for place, change in kept.items()}

    def of(self, choice: Choice) -> Change | None:
        """What the kernel of a choice does by rounding its input; None where it does nothing, or nothing is known."""
        group = _group(choice)
        return None if group is None else self.found.get((choice.site, group))

    def damage(self, choice: Choice) -> float:
        change = self.of(choice)
        return change.damage if change else 0.0

    def _rounding(self, place: tuple[str, int]) -> Leaves:
        return {path: Rounding(leaf, place[1]) for path, leaf in self.leaves[place].items()}


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
