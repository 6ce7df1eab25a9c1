"""The contract between the core and a compression method.

A method turns one tensor, at one point of its parameters, into a `Store`, or says why it cannot. Everything else
(policy syntax, validation, pricing, allocation, rewriting, reports, laws) follows from this file and the method's
own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from tersor.compiler.site import Kind, Site
from tersor.compiler.stores.base import Store

Need = Literal["weights", "calibration", "gradients", "hessian", "training", "teacher", "labels"]


class Params(BaseModel):
    """One point of a method: what a policy may say about it. Unknown names are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot be used somewhere, in words a user can act on."""

    reason: str


@dataclass(frozen=True)
class Context:
    """What `pack` may know beyond its tensor. `scope` is what `survey` returned for it; `form` is the quadratic form
    (in, in) of the error of one row (`measure.forms`), None where none was measured."""

    scope: Any = None
    form: torch.Tensor | None = None


class Method(ABC, Generic[P]):
    """A compression method. `id` is its name in the catalogue; `kinds` the sites it understands; `source` the survey
    section and equation, or the paper.

    `scope = "rule"` means that the method looks at all tensors of a rule together (`survey`), so that the rule's sites
    take the same point or none of them does. `by_row` says that each row of a matrix is packed whatever the others are,
    into bytes that follow from the shape: then prices are found some rows at a time (`measure.rows`).
    """

    id: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    scope: ClassVar[Literal["site", "rule"]] = "site"
    by_row: ClassVar[bool] = False
    Params: ClassVar[type[Any]]

    @property
    def family(self) -> str:
        return self.id.split(".", 1)[0]

    @abstractmethod
    def refuse(self, shape: tuple[int, ...], point: P) -> Refusal | None:
        """Why this point cannot be used on a tensor of this shape; None when it can. Never raises."""

    def survey(self, sites: Sequence[Site], tensors: Mapping[str, torch.Tensor], point: P) -> Mapping[str, Any]:
        """For `scope = "rule"`: what each site's `pack` must know about the others, by site name."""
        return {}

    def wants_form(self, point: P) -> bool:
        """Whether `pack` does better at this point when it knows the form of the error."""
        return False

    def input_group(self, point: P) -> int | None:
        """How many columns of an input share a scale where a kernel rounds it to 8 bits (0: those of a row do); None
        where the point does not say."""
        return None

    def weights(self, point: P) -> P:
        """The point that leaves the same weights, whatever is done to their inputs."""
        return point

    @abstractmethod
    def pack(self, tensor: torch.Tensor, point: P, context: Context = Context()) -> Store:
        """The store that stands for the tensor; called only where `refuse` has nothing against it."""

    def pack_each(self, tensor: torch.Tensor, points: Sequence[P], context: Context = Context()) -> Iterator[Store]:
        """`pack` at several points; overridden where the points share work."""
        for point in points:
            yield self.pack(tensor, point, context)

    @abstractmethod
    def examples(self) -> tuple[P, ...]:
        """Points in order of growing size, for the laws: more bytes never do more damage along them."""
