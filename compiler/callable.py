"""The captured graph with the calling convention of the model it came from."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Generic

import torch
from torch import Tensor, fx, nn
from typing_extensions import TypeVar

from tersor.compiler.errors import RequestError
from tersor.compiler.recurrence import RECURRENT
from tersor.compiler.shapes import shapes_only
from tersor.compiler.signature import Constant, Group, Output, Signature, TensorAt

_MAKE = {"ones_like": torch.ones_like, "zeros_like": torch.zeros_like}


class Outputs(OrderedDict[str, Any]):
    """Named outputs where transformers is not installed: `out.logits`, `out["logits"]` and `out[0]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; there are {', '.join(self)}") from None

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


Flat = TypeVar("Flat", bound=nn.Module, default=fx.GraphModule)


class CompiledModule(nn.Module, Generic[Flat]):
    """Calls a flat graph as the original model was called: positional or by name, with its defaults and its outputs.

    Arguments the graph does not have may only be absent, `None` or `False` (`output_attentions=False`); anything
    else is a TypeError that names the accepted inputs. `return_dict=False` gives a tuple. An input of the wrong
    rank, or longer than the model's tables, is a RequestError.
    """

    def __init__(self, graph_module: Flat, signature: Signature) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.signature = signature
        for kind in self._classes():
            _check_origin(kind)
        self._defaults = [(i.name, *i.default.split(":", 1)) for i in signature.inputs if i.default]
        self._ranks = [(i.name, i.rank) for i in signature.inputs]
        self.train(graph_module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        as_tuple = kwargs.pop("return_dict", True) is False
        given = self.bind(args, kwargs)
        # Exported again, recurrent layers keep their length symbolic as they did when they were captured.
        with shapes_only(RECURRENT) if torch.compiler.is_exporting() else nullcontext():
            flat = self.graph_module(*[given[name] for name, _ in self._ranks])
        output = _build(self.signature.output, flat, self._types)
        if as_tuple and isinstance(self.signature.output, Group) and self.signature.output.kind in self._types:
            return tuple(output.values())
        return output

    @cached_property
    def _types(self) -> dict[str, type[Any]]:
        """Found by the first call: importing transformers takes seconds."""
        return {kind: _output_type(kind) for kind in self._classes()}

    def _classes(self) -> list[str]:
        """The output classes, `module:Class`."""
        return sorted(kind for kind in _kinds(self.signature.output) if ":" in kind)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(args) > len(self.signature.parameters):
            raise TypeError(f"too many positional arguments; {self._accepts()}")
        given: dict[str, Any] = dict(zip(self.signature.parameters, args, strict=False))
        for name, value in kwargs.items():
            if given.get(name) is not None:
                raise TypeError(f"{name!r} is given twice")
            given[name] = value
        for name, make, like in self._defaults:
            if given.get(name) is None and isinstance(given.get(like), Tensor):
                given[name] = _MAKE[make](given[like])
        for name, rank in self._ranks:
            value = given.get(name)
            if not isinstance(value, Tensor):
                raise TypeError(f"input {name!r} is missing or not a tensor; {self._accepts()}")
            if value.dim() != rank:
                raise RequestError(f"input {name!r} has shape {tuple(value.shape)}; the model takes {rank} dimensions")
        for limit in self.signature.limits:
            if given[limit.input].shape[limit.dim] > limit.max:
                raise RequestError(
                    f"input {limit.input!r}: a sequence of {given[limit.input].shape[limit.dim]} tokens is longer than "
                    f"the {limit.max} {limit.what}; shorten or split the text"
                )
        if len(given) > len(self._ranks):
            self._refuse_extras(given)
        return given

    def _refuse_extras(self, given: Mapping[str, Any]) -> None:
        for name in given.keys() - set(self.signature.names):
            if given[name] is not None and given[name] is not False:
                raise TypeError(f"the captured model has no input {name!r}; {self._accepts()}")

    def _accepts(self) -> str:
        return "it takes " + ", ".join(
            i.name + ("" if i.default is None else " (optional)") for i in self.signature.inputs
        )


def _kinds(output: Output) -> set[str]:
    if not isinstance(output, Group):
        return set()
    return {output.kind}.union(*(_kinds(item) for item in output.items))


def _check_origin(kind: str) -> None:
    """Nothing but transformers is ever imported for an output."""
    if kind.split(":")[0].split(".")[0] != "transformers":
        raise RequestError(f"output class {kind!r} does not come from transformers")


def _output_type(kind: str) -> type[Any]:
    """The class `module:Class`, only ever a transformers ModelOutput; `Outputs` where that is not installed."""
    module, name = kind.split(":", 1)
    try:
        base = importlib.import_module("transformers.utils").ModelOutput
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return Outputs
    if not (isinstance(found, type) and issubclass(found, base)):
        raise RequestError(f"{kind!r} is not a transformers output class")
    return found


def _build(output: Output, flat: Sequence[Tensor], types: Mapping[str, type[Any]]) -> Any:
    if isinstance(output, TensorAt):
        return flat[output.index]
    if isinstance(output, Constant):
        return output.value
    items = [_build(item, flat, types) for item in output.items]
    if output.kind == "tuple":
        return tuple(items)
    if output.kind == "list":
        return items
    named = dict(zip(output.fields, items, strict=True))
    return named if output.kind == "dict" else types[output.kind](**named)
