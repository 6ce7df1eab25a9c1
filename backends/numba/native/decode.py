"""Token-by-token generation: a lowered graph of a decoder run at the new tokens only, over cached keys and values."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.backends.numba.decodersteps import Cache, append_step
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler, compute, readers, reading
from tersor.backends.numba.native.lower.attention import AdditiveMask, attend, hides_the_future, query_major
from tersor.backends.numba.native.program import Context, Program
from tersor.backends.numba.native.tokens import at_offset, check_tokens, refuse, token_dim
from tersor.backends.numba.native.values import Ref, Value
from tersor.backends.numba.steps import attention_tile
from tersor.compiler.errors import RequestError
from tersor.compiler.modules import Attention

_PROGRAMS = 16  # numbers of new tokens whose programs are kept
_IDS, _MASK = "input_ids", "attention_mask"

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Plan:
    """What the programs of one decoder share: `caches` are keys and values by attention, `positions` what depends on
    positions only, by node, for `capacity` tokens and for one less.
    """

    graph: fx.GraphModule
    handlers: Mapping[Any, Handler]
    level: str
    batch: int
    capacity: int
    caches: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    positions: dict[fx.Node, Pair] = field(default_factory=dict)


class _Walk:
    """Builds the program for `tokens` new tokens, and beside it one for a token more, which tells dimensions apart."""

    def __init__(self, plan: Plan, tokens: int, threads: int) -> None:
        self.plan, self.tokens = plan, tokens
        self.builders = (Builder(plan.level, threads), Builder(plan.level, threads))
        self.lengths = (tokens, tokens + 1)
        self.new: dict[fx.Node, Pair] = {}  # of the tokens: Values
        self.sizes: dict[fx.Node, Pair] = {}  # numbers, for the two lengths
        self.known = plan.positions
        self.head = _first_output(plan.graph)

    def program(self) -> Program:
        given = [node for node in self.plan.graph.graph.nodes if node.op == "placeholder"]
        ids = next((node for node in given if node.name == _IDS), given[0] if len(given) == 1 else None)
        for node in self.plan.graph.graph.nodes:
            if node.op == "placeholder":
                self._input(node, node is ids)
            elif node.op == "output":
                break
            elif any(source in self.new for source in node.all_input_nodes):
                self._token(node)
            else:
                self._position(node)
        value, _ = self.new.get(self.head, (None, None))
        if not isinstance(value, Value):
            raise refuse(self.head, "does not depend on the tokens")
        if not self._narrows(self.head):
            dim = self._dim(self.head)
            value = value.narrowed(dim, value.shape[dim] - 1, 1)
        return self.builders[0].finish((value,))

    def _input(self, node: fx.Node, ids: bool) -> None:
        shapes = [(self.plan.batch, length) for length in (*self.lengths, self.plan.capacity, self.plan.capacity - 1)]
        if ids:
            made = [torch.zeros(shape, dtype=torch.int64) for shape in shapes[:2]]
            self.new[node] = (self.builders[0].input(made[0]), self.builders[1].input(made[1]))
        elif node.name == _MASK:
            self.known[node] = (torch.ones(shapes[2], dtype=torch.int64), torch.ones(shapes[3], dtype=torch.int64))
        else:
            raise refuse(node, f"is an input besides {_IDS} and {_MASK}")

    def _target(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self.plan.graph.get_submodule(str(node.target))
        return getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target

    def _position(self, node: fx.Node) -> None:
        """A node that reads no token."""
        if node.op == "get_attr":
            found = operator.attrgetter(str(node.target))(self.plan.graph)
            self.known[node] = (found, found)
            return
        target = self._target(node)
        if node not in self.known:
            args: list[Any] = [fx.map_arg((node.args, node.kwargs), partial(self._fixed, i)) for i in (0, 1)]
            self.known[node] = (target(*args[0][0], **args[0][1]), target(*args[1][0], **args[1][1]))
        whole, less = self.known[node]
        if isinstance(whole, int) and not isinstance(whole, bool):
            self.sizes[node] = self._numbers(whole, less)

    def _fixed(self, i: int, node: fx.Node) -> Any:
        return self.known[node][i]

    def _numbers(self, whole: int, less: int) -> Pair:
        """A size that grows by the same with every token, for the two lengths."""
        one, other = (whole + (whole - less) * (length - self.plan.capacity) for length in self.lengths)
        return one, other

    def _read(self, i: int, node: fx.Node) -> Any:
        """What an argument is in program i."""
        if node in self.new:
            return self.new[node][i]
        if node in self.sizes:
            return self.sizes[node][i]
        return at_offset(self.builders[i], node, self.known[node], self.lengths[i], self.plan.capacity)

    def _token(self, node: fx.Node) -> None:
        """A node that reads tokens."""
        target = self._target(node)
        if target is aten_size:
            source, dim = node.args
            one, other = (x.shape[dim] for x in self.new[source])  # type: ignore[index]
            capacity = self.plan.capacity - self.tokens
            self.known[node] = (one + (other - one) * capacity, one + (other - one) * (capacity - 1))
            self.sizes[node] = (one, other)
            return
        if isinstance(target, Attention):
            self._attention(node, target)
            return
        read: list[Any] = [fx.map_arg((node.args, node.kwargs), partial(self._read, i)) for i in (0, 1)]
        if node is self.head and self._narrows(node):
            dim = self._dim(node.all_input_nodes[0])
            for i in (0, 1):
                (x,) = read[i][0]
                read[i] = ((x.narrowed(dim, x.shape[dim] - 1, 1),), {})
        for b in self.builders:  # the input of the logits is cut, so that nobody rounds all of it before
            b.readers = () if self.head in reading(node) else readers(self.plan.graph, node)
        results = tuple(
            compute(b, self.plan.handlers, target, *self._settled(b, node, target, given))
            for b, given in zip(self.builders, read, strict=True)
        )
        self.new[node] = (results[0], results[1])
        if not (node is self.head and self._narrows(node)):
            check_tokens(node, target, (read[0], read[1]), self.new[node])

    def _settled(self, b: Builder, node: fx.Node, target: Any, given: Pair) -> tuple[tuple[Any, ...], Any]:
        """Arguments as a handler or torch takes them."""
        args, kwargs = given
        handler = self.plan.handlers.get(type(target) if isinstance(target, nn.Module) else target)
        moving = {move.base for move in b.moves}

        def settle(leaf: Any) -> Any:
            return b.settled(leaf) if isinstance(leaf, Value) and b.base(leaf) in moving else leaf

        if handler is None:
            args, kwargs = pytree.tree_map(settle, (args, dict(kwargs)))
        return tuple(args), kwargs

    def _dim(self, node: fx.Node) -> int:
        one, other = self.new[node]
        dim = token_dim(one, other)
        if dim is None:
            raise refuse(node, "does not keep one dimension of tokens")
        return dim

    def _narrows(self, node: fx.Node) -> bool:
        """Whether the logits come from a module over one tensor, which then reads the last token only."""
        return node.op == "call_module" and len(node.args) == 1 and node.all_input_nodes[0] in self.new

    def _attention(self, node: fx.Node, module: Attention) -> None:
        names = list(node.args)
        mask = names.pop() if len(names) == 4 else None
        if node.kwargs or not all(name in self.new for name in names):
            raise refuse(node, "does not attend to the tokens alone")
        hidden, causal = self._mask(node, mask, module.is_causal)
        results = []
        for i, b in enumerate(self.builders):
            parts = [self.new[name][i] for name in names]  # type: ignore[index]
            q, k, v = (x if x.stride[-1] == 1 else b.dense(x) for x in parts)
            if any(x.shape[2] != self.lengths[i] or x.shape[0] != self.plan.batch for x in (q, k, v)):
                raise refuse(node, "has its tokens elsewhere than in the third dimension")
            results.append(self._attend(b, node, module.scale, (q, k, v), hidden, causal))
        self.new[node] = (results[0], results[1])

    def _attend(
        self, b: Builder, node: fx.Node, scale: float | None, parts: Any, hidden: Tensor | None, causal: bool
    ) -> Any:
        q, k, v = parts
        batch, heads, _, width = k.shape
        if node not in self.plan.caches:
            sizes = Cache.sizes(b.level, heads, width, self.plan.capacity)
            self.plan.caches[node] = (torch.zeros(batch * sizes[0]), torch.zeros(batch * sizes[1]))
        keys, values = (b.keep(x) for x in self.plan.caches[node])
        cache = Cache(keys, values, heads, width, self.plan.capacity, attention_tile(b.level))
        offset = Ref(b.moving(0, 1))
        b.step(append_step(b.level, k, v, cache, offset))
        mask = AdditiveMask()
        if hidden is not None:
            steps = [0 if n == 1 else 4 * s for n, s in zip(hidden.shape, hidden.stride(), strict=True)]
            mask = AdditiveMask(Ref(b.moving(b.keep(hidden), steps[2])), *steps[:3])
        return attend(b, scale, q, cache, (offset, q.shape[2]), mask, causal)

    def _mask(self, node: fx.Node, mask: Any, causal: bool) -> tuple[Tensor | None, bool]:
        """(mask to be added, whether each token sees itself and what came before)."""
        b = self.builders[0]
        if mask is None or (mask in self.known and self.known[mask][0] is None):
            if not causal:
                raise refuse(node, "lets tokens see those that come after them")
            return None, True
        if mask not in self.known or causal:
            raise refuse(node, "has a mask that depends on the tokens")
        at_offset(b, mask, self.known[mask], self.tokens, self.plan.capacity)
        whole = self.known[mask][0]
        if hides_the_future(b, whole):
            return None, True
        made = self.plan.positions.get(node)
        if made is None:
            added = query_major(whole, attention_tile(b.level)) if whole.dim() == 4 else None
            later = torch.ones(whole.shape[-2:], dtype=torch.bool).triu(1)
            if added is None or not bool((added[..., : whole.shape[-1]][..., later] == -torch.inf).all()):
                raise refuse(node, "lets tokens see those that come after them")
            made = self.plan.positions[node] = (added, added)
        return made[0], False


def _first_output(graph: fx.GraphModule) -> fx.Node:
    """The node of the logits: the first output."""
    found: list[fx.Node] = [n for n in pytree.tree_leaves(graph.graph.output_node().args) if isinstance(n, fx.Node)]
    if not found:
        raise RequestError("the model cannot generate: it has no output that depends on its inputs")
    return found[0]


aten_size = torch.ops.aten.sym_size.int


class Decoder:
    """`batch` sequences of up to `capacity` tokens, all of one length, taken in piece by piece.

    RequestError, naming the node, for a graph that does not treat every token alike apart from causal attention and
    what depends on positions only. One caller at a time.
    """

    def __init__(
        self, graph: fx.GraphModule, handlers: Mapping[Any, Handler], level: str, batch: int, capacity: int
    ) -> None:
        if capacity < 2 or batch < 1:
            raise RequestError(f"a decoder for {batch} sequences of {capacity} tokens: at least 1 of 2 is needed")
        self.batch, self.capacity = batch, capacity
        self.length = 0
        self._plan = Plan(graph, handlers, level, batch, capacity)
        self._programs: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self._context = Context()

    def reset(self, length: int = 0) -> None:
        """Forget all tokens but the first `length`."""
        if not 0 <= length <= self.length:
            raise RequestError(f"a decoder that took in {self.length} tokens cannot keep {length} of them")
        self.length = length

    def step(self, ids: Tensor) -> Tensor:
        """Take in tokens `ids` (batch, new tokens); the logits (batch, entries) that follow the last of them."""
        if ids.dim() != 2 or ids.shape[0] != self.batch or not ids.shape[1]:
            raise RequestError(f"tokens of shape {tuple(ids.shape)} for a decoder of {self.batch} sequences")
        if self.length + ids.shape[1] > self.capacity:
            raise RequestError(f"{self.length} and {ids.shape[1]} tokens are more than a capacity of {self.capacity}")
        (logits,) = self.program(ids.shape[1]).run([ids.to(torch.int64)], self._context, self.length)
        self.length += ids.shape[1]
        found: Tensor = logits.reshape(self.batch, -1)
        return found

    def program(self, tokens: int) -> Program:
        """The program for so many new tokens, on as many threads as torch uses now."""
        key = (tokens, torch.get_num_threads())
        if key not in self._programs:
            with torch.no_grad():
                self._programs[key] = _Walk(self._plan, *key).program()
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]
