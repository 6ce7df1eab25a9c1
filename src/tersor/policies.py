"""`tersor.Policy`: the policy model with its text."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tersor.catalogue import BY_ID
from tersor.compiler import policy as model
from tersor.compiler.errors import RequestError
from tersor.dsl import parse_policy, read_policy, write_policy
from tersor.passes.catalogue import CATALOGUE


class Policy(model.Policy):
    """What may be done to which parts of a model, and how small the result must be.

    >>> Policy.parse("budget size <= 20%").to_text()
    'budget size <= 20%\\nminimize damage\\n'
    """

    @classmethod
    def parse(cls, text: str, name: str = "<policy>") -> Self:
        """The meaning of a policy text; `name` is what messages call it. Raises PolicyError with every problem."""
        return cls(**vars(parse_policy(text, BY_ID, name=name, catalogue=CATALOGUE)))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The meaning of a policy file. Raises PolicyError with every problem, also where it cannot be read."""
        return cls(**vars(read_policy(Path(path), BY_ID, catalogue=CATALOGUE)))

    def to_text(self) -> str:
        """The canonical text: `Policy.parse(p.to_text()) == p`."""
        return write_policy(self)


def as_policy(policy: model.Policy | str | Path) -> Policy:
    """The policy behind a path, or a policy itself; one built in Python is checked as if it had been written."""
    if isinstance(policy, str) and "\n" in policy:
        raise RequestError("`policy` is a text, not a path: give `tersor.Policy.parse(text)`")
    if isinstance(policy, str | Path):
        return Policy.read(policy)
    if isinstance(policy, model.Policy):
        if all(rule.span is not None for rule in policy.rules) and isinstance(policy, Policy):
            return policy
        return Policy.parse(write_policy(policy))
    raise RequestError(f"`policy` is a path or a tersor.Policy, not a {type(policy).__name__}")
