"""How a captured model is called: its inputs, what it returns, and how long its inputs may be. Plain data, JSON both
ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Input:
    """A tensor input. `default` says how to make it when it is absent: `ones_like:NAME`, `zeros_like:NAME`, or None."""

    name: str
    dtype: str
    rank: int
    default: str | None = None


@dataclass(frozen=True)
class Limit:
    """Dimension `dim` of `input` may not exceed `max`, the size of `what` (a table of positions, a mask buffer)."""

    input: str
    dim: int
    max: int
    what: str


@dataclass(frozen=True)
class TensorAt:
    """The `index`-th tensor of the flat outputs."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the inputs (`None`, a number, a string)."""

    value: Scalar


@dataclass(frozen=True)
class Group:
    """A container: `kind` is `tuple`, `list`, `dict`, or `module:Class` of a transformers output; `fields` name the
    items of the last two."""

    kind: str
    items: tuple[Output, ...]
    fields: tuple[str, ...] = ()


Output = TensorAt | Constant | Group


@dataclass(frozen=True)
class Signature:
    """`inputs` are the placeholders of the graph in order; `parameters` the positional parameters of the original
    `forward`, inputs or not, so that a positional call means what it meant before."""

    inputs: tuple[Input, ...]
    output: Output
    parameters: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [asdict(i) for i in self.inputs],
            "output": _output_to_json(self.output),
            "parameters": list(self.parameters),
            "limits": [asdict(limit) for limit in self.limits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        return cls(
            inputs=tuple(Input(**i) for i in data["inputs"]),
            output=_output_from_json(data["output"]),
            parameters=tuple(data["parameters"]),
            limits=tuple(Limit(**limit) for limit in data["limits"]),
        )


def _output_to_json(output: Output) -> dict[str, Any]:
    match output:
        case TensorAt(index):
            return {"tensor": index}
        case Constant(value):
            return {"constant": value}
        case Group(kind, items, fields):
            return {"group": kind, "items": [_output_to_json(i) for i in items], "fields": list(fields)}


def _output_from_json(data: Mapping[str, Any]) -> Output:
    if "tensor" in data:
        return TensorAt(data["tensor"])
    if "constant" in data:
        return Constant(data["constant"])
    return Group(data["group"], tuple(_output_from_json(i) for i in data["items"]), tuple(data["fields"]))
