"""Clean-ups of decoders around the kernels: operators that together are one known part. All change a graph in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.backends.numba.decodermodules import RootNorm, Rotary
from tersor.compiler.modules import Attention

aten = torch.ops.aten
_HIDDEN = -1e30  # what is filled in below here is hidden
_TANH_GELU = (0.5, 0.044715, 0.7978845608028654)


def fuse_decoder(module: fx.GraphModule) -> None:
    """All of the below."""
    fuse_root_norms(module)
    fuse_rotary(module)
    fuse_written_attention(module)
    fuse_tanh_gelu(module)
    share_key_heads(module)


def _call(node: Any, *targets: Any) -> fx.Node | None:
    """The node, if it calls one of these operators without keywords."""
    return node if isinstance(node, fx.Node) and node.target in targets and not node.kwargs else None


def _only_user(node: fx.Node, *targets: Any) -> fx.Node | None:
    return _call(next(iter(node.users)), *targets) if len(node.users) == 1 else None


def _with_number(node: Any, *targets: Any) -> tuple[fx.Node, float] | None:
    """(tensor, number) of an operator of two operands; in whichever order, but for a quotient."""
    found = _call(node, *targets)
    if found is None or len(found.args) != 2:
        return None
    one, other = found.args
    if isinstance(one, int | float) and found.target is not aten.div.Tensor:
        one, other = other, one
    return (one, float(other)) if isinstance(one, fx.Node) and isinstance(other, int | float) else None


def _replace(graph: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(node):
        node.replace_all_uses_with(graph.graph.call_module(name, args))


def fuse_root_norms(module: fx.GraphModule) -> None:
    """w * (x * rsqrt(mean(x^2) + epsilon)), written out or as torch's own, becomes a `RootNorm`."""
    for i, root in enumerate(module.graph.find_nodes(op="call_function", target=aten.rsqrt.default)):
        total = _with_number(root.args[0], aten.add.Tensor)
        mean = _call(total[0], aten.mean.dim) if total else None
        square = _call(mean.args[0], aten.pow.Tensor_Scalar) if mean and mean.args[1:] == ([-1], True) else None
        scaled = _only_user(root, aten.mul.Tensor)
        last = _only_user(scaled, aten.mul.Tensor) if scaled else None
        if total is None or square is None or scaled is None or last is None or square.args[1] != 2:
            continue
        x = square.args[0]
        weights = [n for n in last.args if n is not scaled]
        if set(scaled.args) != {x, root} or len(weights) != 1 or not isinstance(weights[0], fx.Node):
            continue
        weight = _constant(module, weights[0])
        if weight is not None and weight.dim() == 1:
            _replace(module, last, f"root_norm_{i}", RootNorm(weight, total[1]), (x,))
    for i, norm in enumerate(module.graph.find_nodes(op="call_function", target=aten.rms_norm.default)):
        x, shape, named, epsilon = (*norm.args, None, None)[:4]
        weight = _constant(module, named) if isinstance(named, fx.Node) else None
        if weight is None or len(shape) != 1 or norm.kwargs:
            continue
        epsilon = torch.finfo(weight.dtype).eps if epsilon is None else epsilon
        _replace(module, norm, f"rms_norm_{i}", RootNorm(weight, epsilon), (x,))
    module.graph.eliminate_dead_code()


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    if node.op != "get_attr":
        return None
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


def fuse_rotary(module: fx.GraphModule) -> None:
    """x cos + cat(-x2, x1) sin becomes a `Rotary`."""
    for i, cat in enumerate(module.graph.find_nodes(op="call_function", target=aten.cat.default)):
        parts, dim = cat.args if len(cat.args) == 2 else ((), 0)
        turned = _only_user(cat, aten.mul.Tensor)
        last = _only_user(turned, aten.add.Tensor) if turned else None
        if last is None or turned is None or not isinstance(parts, list | tuple) or len(parts) != 2:
            continue
        negated, first = _call(parts[0], aten.neg.default), _call(parts[1], aten.slice.Tensor)
        second = _call(negated.args[0], aten.slice.Tensor) if negated else None
        if first is None or second is None or first.args[0] is not second.args[0]:
            continue
        x, half = first.args[0], second.args[2]
        straight = _call(next((n for n in last.args if n is not turned), None), aten.mul.Tensor)
        wanted = first.args[2:] == (0, half) and first.args[1] == second.args[1] and second.args[3] == 2**63 - 1
        if straight is None or not wanted or x not in straight.args or dim not in (-1, first.args[1]):
            continue
        cos, sin = (next((n for n in m.args if n is not known), None) for m, known in ((straight, x), (turned, cat)))
        if isinstance(half, int) and isinstance(cos, fx.Node) and isinstance(sin, fx.Node) and first.args[1] in (3, -1):
            _replace(module, last, f"rotary_{i}", Rotary(half), (x, cos, sin))
    module.graph.eliminate_dead_code()


def fuse_written_attention(module: fx.GraphModule) -> None:
    """softmax(q k^T * number, hidden where a mask says so) v becomes an `Attention`."""
    for i, softmax in enumerate(module.graph.find_nodes(op="call_function", target=aten.softmax.int)):
        product = _only_user(softmax, aten.matmul.default)
        if product is None or softmax.args[1:] != (-1,) or product.args[0] != softmax:
            continue
        scores: Any = softmax.args[0]
        filled = _call(scores, aten.masked_fill.Scalar)
        if filled is not None:
            if not isinstance(filled.args[2], int | float) or filled.args[2] > _HIDDEN:
                continue
            scores = filled.args[0]
        scale = 1.0
        for target, inverse in ((aten.mul.Tensor, False), (aten.div.Tensor, True)):
            scaled = _with_number(scores, target)
            if scaled is not None:
                scores, scale = scaled[0], 1 / scaled[1] if inverse else scaled[1]
                break
        first = _call(scores, aten.matmul.default)
        turned = _call(first.args[1], aten.transpose.int) if first else None
        if first is None or turned is None or turned.args[1:] not in ((-2, -1), (-1, -2), (2, 3), (3, 2)):
            continue
        args: tuple[Any, ...] = (first.args[0], turned.args[0], product.args[1])
        if filled is not None:
            with module.graph.inserting_before(product):
                args += (module.graph.call_function(aten.logical_not.default, (filled.args[1],)),)
        _replace(module, product, f"written_attention_{i}", Attention(scale=scale), args)
    module.graph.eliminate_dead_code()


def fuse_tanh_gelu(module: fx.GraphModule) -> None:
    """0.5 x (1 + tanh(0.79788 (x + 0.044715 x^3))) becomes a GELU."""
    half, cube, outer = _TANH_GELU
    for i, tanh in enumerate(module.graph.find_nodes(op="call_function", target=aten.tanh.default)):
        scaled = _with_number(tanh.args[0], aten.mul.Tensor)
        total = _call(scaled[0], aten.add.Tensor) if scaled and abs(scaled[1] - outer) < 1e-6 else None
        raised = _with_number(total.args[1], aten.mul.Tensor) if total else None
        power = _call(raised[0], aten.pow.Tensor_Scalar) if raised and abs(raised[1] - cube) < 1e-9 else None
        one = _only_user(tanh, aten.add.Tensor)
        plus = _with_number(one, aten.add.Tensor)
        last = _only_user(one, aten.mul.Tensor) if one else None
        if total is None or power is None or last is None or plus is None or plus[1] != 1:
            continue
        x = total.args[0]
        halved = _with_number(next((n for n in last.args if n is not one), None), aten.mul.Tensor)
        if power.args == (x, 3) and halved == (x, half) and isinstance(x, fx.Node):
            _replace(module, last, f"tanh_gelu_{i}", nn.GELU("tanh"), (x,))
    module.graph.eliminate_dead_code()


def share_key_heads(module: fx.GraphModule) -> None:
    """Attention over repeated key heads reads each of them once."""
    for node in module.graph.find_nodes(op="call_module"):
        attention = module.get_submodule(str(node.target))
        if not isinstance(attention, Attention) or attention.enable_gqa:
            continue
        heads = [_repeated(argument) for argument in node.args[1:3]]
        if all(head is not None for head in heads):
            shared = Attention(attention.p, attention.is_causal, attention.scale, True).eval()
            module.set_submodule(str(node.target), shared)
            node.args = (node.args[0], *heads, *node.args[3:])
    module.graph.eliminate_dead_code()


def _repeated(argument: Any) -> fx.Node | None:
    """k of reshape(expand(unsqueeze(k, 2), [batch, heads, times, tokens, width]), [batch, heads * times, ...])."""
    merged = _call(argument, aten.reshape.default)
    spread = _call(merged.args[0], aten.expand.default) if merged else None
    lifted = _call(spread.args[0], aten.unsqueeze.default) if spread else None
    if merged is None or spread is None or lifted is None or lifted.args[1] not in (2, -3):
        return None
    wide, whole = spread.args[1], merged.args[1]
    if not isinstance(wide, list | tuple) or not isinstance(whole, list | tuple) or len(wide) != 5 or len(whole) != 4:
        return None
    repeats = isinstance(wide[1], int) and isinstance(wide[2], int) and whole[1] == wide[1] * wide[2]
    found = lifted.args[0]
    return found if repeats and isinstance(found, fx.Node) else None
