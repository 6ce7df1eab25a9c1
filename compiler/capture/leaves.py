"""Which ATen node becomes which module, operator by operator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tersor.compiler.errors import CompilerBug
from tersor.compiler.graph import matrix, parameter, same_shape
from tersor.compiler.modules import Attention

aten = torch.ops.aten
Rewire = Callable[[fx.Graph, fx.Node, fx.Node], None]


@dataclass(frozen=True)
class Candidate:
    """A node that can be a module: what it holds (`weight`, `bias`, `flat` weights, `options`), what it is called
    with, and what its result replaces (`result` when that is a later node, `rewire` when the outputs are several)."""

    node: fx.Node
    kind: str
    arguments: tuple[Any, ...]
    weight: nn.Parameter | None = None
    bias: nn.Parameter | None = None
    transposed: bool = False
    flat: tuple[nn.Parameter, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    result: fx.Node | None = None
    rewire: Rewire | None = None

    def identity(self) -> tuple[Any, ...]:
        """Equal for nodes that may share one module."""
        held = (id(self.weight), id(self.bias), *map(id, self.flat))
        return (self.kind, self.transposed, held, self.options)


def candidate(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    """The module a node can become, or None when it stays ATen."""
    if node.op != "call_function" or not node.users:
        return None
    rule = _RULES.get(node.target)
    return None if rule is None else rule(gm, node)


def build(c: Candidate) -> nn.Module:
    """The module of a candidate, holding the candidate's parameters themselves (a transposed weight: a view of it)."""
    options = dict(c.options)
    module: nn.Module
    if c.kind == "linear":
        rows, width = reversed(_matrix(c).shape) if c.transposed else _matrix(c).shape
        module = nn.Linear(width, rows, bias=c.bias is not None, device="meta")
    elif c.kind == "embedding":
        rows, width = _matrix(c).shape
        module = nn.Embedding(rows, width, device="meta", **options)
    elif c.kind == "norm":
        module = nn.LayerNorm(bias=c.bias is not None, device="meta", **options)
    elif c.kind == "dropout":
        return nn.Dropout(**options)
    elif c.kind == "attention":
        return Attention(**options)
    else:
        recurrent = getattr(nn, options.pop("module"))(device="meta", **options)
        for name, parameter in zip(recurrent._flat_weights_names, c.flat, strict=True):
            setattr(recurrent, name, parameter)
        return recurrent  # type: ignore[no-any-return]
    weight = _matrix(c)
    if c.transposed:
        weight = nn.Parameter(weight.detach().t(), requires_grad=weight.requires_grad)
    module.register_parameter("weight", weight)
    if c.bias is not None:
        module.register_parameter("bias", c.bias)
    return module


def _matrix(c: Candidate) -> nn.Parameter:
    if c.weight is None:
        raise CompilerBug(f"a {c.kind} without a weight")
    return c.weight


def _linear(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    """linear(x, W, b) = x W^T + b."""
    return _product(gm, node, node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None, False)


def _matmul(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    """matmul(x, V) = x V, so W = V^T."""
    return _product(gm, node, node.args[0], node.args[1], None, True)


def _addmm(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    """addmm(b, x, V) = x V + b; the reshapes to rows and back around it are taken along."""
    if node.kwargs:
        return None
    x, back = node.args[1], None
    if isinstance(x, fx.Node) and x.target is aten.reshape.default and len(node.users) == 1:
        inner, outer = x.args[0], next(iter(node.users))
        if (
            isinstance(inner, fx.Node)
            and outer.target is aten.reshape.default
            and same_shape(inner.meta["val"].shape[:-1], outer.meta["val"].shape[:-1])
            and outer.meta["val"].shape[-1] == node.meta["val"].shape[-1]
            and inner.meta["val"].shape[-1] == x.meta["val"].shape[-1]
        ):
            x, back = inner, outer
    return _product(gm, node, x, node.args[2], node.args[0], True, back)


def _product(
    gm: fx.GraphModule, node: fx.Node, x: Any, w: Any, b: Any, flipped: bool, result: fx.Node | None = None
) -> Candidate | None:
    found = matrix(gm, w)
    bias = parameter(gm, b)
    if found is None or (b is not None and (bias is None or bias.dim() != 1)) or not isinstance(x, fx.Node):
        return None
    weight, turned = found
    return Candidate(node, "linear", (x,), weight, bias, transposed=turned != flipped, result=result)


def _padded(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """The positional arguments, as many as there are defaults, missing ones filled in."""
    return (*node.args, *defaults[len(node.args) :])[: len(defaults)]


def _embedding(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    args = _padded(node, None, None, -1, False, False)
    weight, padding = parameter(gm, args[0]), args[2]
    if weight is None:
        return None
    options = (("padding_idx", padding if padding >= 0 else None), ("scale_grad_by_freq", args[3]), ("sparse", args[4]))
    return Candidate(node, "embedding", (args[1],), weight, options=options)


def _layer_norm(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    x, shape, w, b, eps = _padded(node, None, None, None, None, 1e-5)
    weight, bias = parameter(gm, w), parameter(gm, b)
    if weight is None or (b is not None and bias is None) or not all(isinstance(n, int) for n in shape):
        return None
    options = (("normalized_shape", tuple(shape)), ("eps", eps))
    return Candidate(node, "norm", (x,), weight, bias, options=options)


def _dropout(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    return Candidate(node, "dropout", (node.args[0],), options=(("p", node.args[1]),))


def _attention(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    options = (
        ("p", given.get("dropout_p", 0.0)),
        ("is_causal", given.get("is_causal", False)),
        ("scale", given.get("scale")),
        ("enable_gqa", given.get("enable_gqa", False)),
    )
    if any(isinstance(value, fx.Node) for _, value in options):
        return None
    mask = given.get("attn_mask")
    arguments = (given["query"], given["key"], given["value"], *(() if mask is None else (mask,)))
    return Candidate(node, "attention", arguments, options=options)


_RECURRENT: dict[Any, str] = {
    aten.lstm.input: "LSTM",
    aten.gru.input: "GRU",
    aten.rnn_tanh.input: "RNN",
    aten.rnn_relu.input: "RNN",
}


def _recurrent(gm: fx.GraphModule, node: fx.Node) -> Candidate | None:
    args: Any = node.args
    x, hx, weights, biases, layers, p, _, bidirectional, first = args
    found = [parameter(gm, w) for w in weights]
    flat = tuple(w for w in found if w is not None)
    if len(flat) != len(found):
        return None
    name = _RECURRENT[node.target]
    states = list(hx) if isinstance(hx, list | tuple) else [hx]
    hidden = states[0].meta["val"].shape[-1]
    options = {
        "module": name,
        "input_size": x.meta["val"].shape[-1],
        "hidden_size": flat[0].shape[0] // {"LSTM": 4, "GRU": 3, "RNN": 1}[name],
        "num_layers": layers,
        "bias": biases,
        "dropout": p,
        "bidirectional": bidirectional,
        "batch_first": first,
    }
    if name == "LSTM" and hidden != options["hidden_size"]:
        options["proj_size"] = hidden
    if node.target is aten.rnn_relu.input:
        options["nonlinearity"] = "relu"
    zeros = all(s.target is aten.zeros.default for s in states)
    arguments = (x,) if zeros else (x, tuple(states) if name == "LSTM" else states[0])
    return Candidate(
        node,
        "recurrent",
        arguments,
        weight=flat[0],
        flat=flat,
        options=tuple(options.items()),
        rewire=_lstm_outputs if name == "LSTM" else _two_outputs,
    )


def _two_outputs(graph: fx.Graph, node: fx.Node, call: fx.Node) -> None:
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _lstm_outputs(graph: fx.Graph, node: fx.Node, call: fx.Node) -> None:
    """(out, h, c) of the operator is (out, (h, c)) of the module."""
    out, h, c = node.meta["val"]
    call.meta["val"] = (out, (h, c))
    for use in list(node.users):
        index: Any = use.args[1]
        if index == 0:
            use.args = (call, 0)
            continue
        with graph.inserting_before(use):
            state = graph.call_function(operator.getitem, (call, 1))
        state.meta = {**use.meta, "val": (h, c)}
        use.args = (state, index - 1)
    graph.erase_node(node)


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], Candidate | None]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.embedding.default: _embedding,
    aten.layer_norm.default: _layer_norm,
    aten.dropout.default: _dropout,
    aten.scaled_dot_product_attention.default: _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
