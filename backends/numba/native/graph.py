"""A lowered graph as one native program per shape of its inputs."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.program import Bound, Context, Program
from tersor.backends.numba.native.values import Derived, Value
from tersor.backends.numba.ops import all_direct
from tersor.compiler.errors import RequestError

if TYPE_CHECKING:
    from tersor.backends.numba.native.decode import Decoder

_PROGRAMS = 64  # shapes whose programs are kept, the least recently used go first
_ROOM = 64  # tokens: a decoder to be kept has room for a multiple of it

Handler = Callable[[Builder, Any, tuple[Any, ...], Mapping[str, Any]], Any]
"""(builder, module or operator, arguments, keywords) -> the result with Values in it, or NotImplemented."""


def build(
    graph: fx.GraphModule,
    handlers: Mapping[Any, Handler],
    inputs: tuple[Tensor, ...],
    uniform: tuple[int | None, ...],
    level: str,
    threads: int,
) -> Program:
    """The program of `graph` for inputs of these shapes and types, and of these values where they are `uniform`.

    What depends on shapes and constants only is computed now, by torch; the rest by its handler, found by the class of
    a module or by the operator; what has none by torch in every run.
    """
    builder = Builder(level, threads)
    given = iter(zip(inputs, uniform, strict=True))
    known: dict[fx.Node, Any] = {}
    outputs: Any = ()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            tensor, everywhere = next(given)
            value = builder.input(tensor)
            known[node] = value if everywhere is None else torch.full_like(tensor, everywhere)
            continue
        if node.op == "get_attr":
            known[node] = operator.attrgetter(str(node.target))(graph)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        if node.op == "output":
            outputs = args[0]
            continue
        target = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        if node.op == "call_method":
            target = getattr(torch.Tensor, str(node.target))
        builder.readers = readers(graph, node)
        known[node] = compute(builder, handlers, target, tuple(args), kwargs)
    return builder.finish(outputs)


def reading(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a node, or a part of what it gives."""
    parts = (reading(user) if user.target is operator.getitem else [user] for user in node.users)
    return [user for part in parts for user in part]


def readers(graph: fx.GraphModule, node: fx.Node) -> tuple[Any, ...]:
    """The modules and operators that read the node, or a part of what it gives."""
    users = ((user.op, str(user.target), user.target) for user in reading(node))
    return tuple(graph.get_submodule(path) if op == "call_module" else target for op, path, target in users)


def compute(
    builder: Builder, handlers: Mapping[Any, Handler], target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a node gives: computed now if no Value is involved, else by its handler, else by torch."""
    if not any(isinstance(leaf, Value | Derived) for leaf in pytree.tree_leaves((args, dict(kwargs)))):
        return target(*args, **kwargs)
    handler = handlers.get(type(target) if isinstance(target, nn.Module) else target)
    found = NotImplemented if handler is None else handler(builder, target, args, kwargs)
    if found is not NotImplemented:
        return found
    original = pytree.tree_map(lambda leaf: leaf.original if isinstance(leaf, Derived) else leaf, (args, dict(kwargs)))
    return builder.torch(target, *original)


def _uniform(x: Tensor) -> int | None:
    """0 or 1 if these integers are all that, else None."""
    if x.dtype.is_floating_point or x.dtype.is_complex or not x.numel():
        return None
    values = x.numpy()
    # Reductions of a small tensor take torch and numpy several times as long as a comparison of bytes.
    first = int(values.item(0))
    if first not in (0, 1):
        return None
    raw = values.tobytes()
    return first if raw == raw[: values.itemsize] * values.size else None


class NativeGraph(nn.Module):
    """Runs the graph `lowered` natively where nobody watches; traced, differentiated or transformed it is that graph.

    Calls from several threads at once are safe and give the same results.
    """

    def __init__(self, lowered: fx.GraphModule, handlers: Mapping[Any, Handler], level: str) -> None:
        super().__init__()
        self.lowered = lowered
        self.level = level
        self._handlers = handlers
        self._programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()
        self._contexts: list[Context] = []
        self._idle: Decoder | None = None
        self._lock = threading.Lock()
        self.train(lowered.training)

    def forward(self, *inputs: Tensor) -> Any:
        if not all_direct(inputs):
            return self.lowered(*inputs)
        program = self.program(*inputs)
        try:
            context = self._contexts.pop()
        except IndexError:
            context = Context()
        try:
            return program.run(inputs, context)
        finally:
            self._contexts.append(context)

    def program(self, *inputs: Tensor) -> Program:
        """The program for inputs of these shapes and types, on as many threads as torch uses now.

        Integers that are all 0 or all 1 are taken as constants, so that a mask that hides nothing costs nothing.
        """
        return self._program(inputs, tuple(_uniform(x) for x in inputs))

    def _program(self, inputs: tuple[Tensor, ...], uniform: tuple[int | None, ...]) -> Program:
        threads = torch.get_num_threads()
        key = (threads, *((x.shape, x.dtype) for x in inputs), uniform)
        with self._lock:
            program = self._programs.get(key)
            if program is not None:
                self._programs.move_to_end(key)
                return program
        with torch.no_grad():
            program = build(self.lowered, self._handlers, inputs, uniform, self.level, threads)
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        return program

    def bind(self, *inputs: Tensor) -> Bound:
        """The program for these inputs, to be called again and again on what then lies in them, without a look at
        their shapes, types and devices: for small inputs that takes longer than the steps. On as many threads as torch
        uses now.

        RequestError where the inputs are not plain tensors on the CPU, contiguous, that nobody takes gradients of.
        """
        if not all_direct(inputs) or not all(x.is_contiguous() for x in inputs):
            raise RequestError("inputs to bind are contiguous tensors on the CPU, without gradients or transformations")
        return Bound(self._program(inputs, (None,) * len(inputs)), inputs, Context())

    def decoder(self, batch: int, capacity: int) -> Decoder:
        """Token-by-token generation for `batch` sequences of up to `capacity` tokens; see `Decoder`."""
        from tersor.backends.numba.native.decode import Decoder  # it reads the handlers, which read this file

        return Decoder(self.lowered, self._handlers, self.level, batch, capacity)

    def borrow(self, batch: int, tokens: int, longest: int | None) -> Decoder:
        """A decoder with room for at least `tokens`, and for some more up to `longest`: the one that was
        given back last if it fits, since making its programs takes as long as generating some tokens."""
        with self._lock:
            held, self._idle = self._idle, None
        if held is not None and held.batch == batch and held.capacity >= tokens:
            held.reset()
            return held
        room = ceil_to(tokens, _ROOM)
        return self.decoder(batch, max(tokens, min(room, longest or room)))

    def give_back(self, decoder: Decoder) -> None:
        """Keep a decoder that is no longer used, with its programs, keys and values."""
        self._idle = decoder

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_programs=OrderedDict(), _contexts=[], _idle=None, _lock=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
