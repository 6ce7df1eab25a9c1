"""The signal: what about a model's output must stay, and how far two outputs are apart.

The damage of a change is the expected divergence of the signal. Both signals have a probe: a random scalar f per
example whose squared directional derivative has the divergence as its expectation to second order, so that one
backward pass prices every change of every weight (`measure.damage`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.compiler.errors import RequestError
from tersor.compiler.program import Program

SignalName = Literal["embedding", "logits"]


class Signal(Protocol):
    """A view of the outputs. `outputs` are the graph's flat outputs, `inputs` its inputs by name."""

    @property
    def name(self) -> SignalName: ...

    @property
    def unit(self) -> str: ...

    def probe(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """f per example, (batch,), with E (df)^2 / 2 = divergence to second order."""

    def view(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """What is compared, (vectors, width)."""

    def divergence(self, reference: Tensor, view: Tensor) -> Tensor:
        """How far each vector is from the reference, (vectors,)."""

    def change(self, reference: Tensor, view: Tensor) -> Tensor:
        """c with ||c||^2 / 2 = divergence to second order, (vectors, width): changes add up."""


def primary(outputs: Sequence[Tensor]) -> Tensor:
    """The first floating output with an example dimension and a feature dimension."""
    for output in outputs:
        if output.dtype.is_floating_point and output.dim() >= 2:
            return output
    raise RequestError("the model returns no floating tensor of shape (batch, ..., features) to compare")


def token_mask(hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """(batch, tokens) weights: the attention mask where there is one of the right shape, else ones."""
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == hidden.shape[:2]:
        return mask.to(hidden.dtype)
    return torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)


@dataclass(frozen=True)
class Embedding:
    """The mean of the token vectors over the mask, scaled to length 1; divergence 1 - cos = ||z - z'||^2 / 2.

    Probe f = <v, z> with v ~ N(0, I) per example: E f'^2 = ||dz||^2.
    """

    name: SignalName = "embedding"
    unit: str = "1 - cosine"

    def _pooled(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        hidden = primary(outputs)
        if hidden.dim() > 2:
            mask = token_mask(hidden, inputs).unsqueeze(-1)
            hidden = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
        return F.normalize(hidden.reshape(hidden.shape[0], -1), dim=-1)

    def probe(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        z = self._pooled(outputs, inputs)
        return (z * torch.randn(z.shape, generator=generator)).sum(-1)

    def view(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        return self._pooled(outputs, inputs)

    def divergence(self, reference: Tensor, view: Tensor) -> Tensor:
        return 1 - (reference * view).sum(-1)

    def change(self, reference: Tensor, view: Tensor) -> Tensor:
        return view - reference


@dataclass(frozen=True)
class Logits:
    """The distribution over classes at every position; divergence KL(p || p') in nats.

    Probe f = T^(-1/2) sum_t log p(y_t) with labels sampled from the model itself: the scores of sampled labels have
    mean zero, so E f'^2 / 2 is the mean over positions of the Fisher quadratic form, KL to second order.
    """

    name: SignalName = "logits"
    unit: str = "nats per prediction"

    def probe(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        logits = primary(outputs)
        logits = logits.reshape(logits.shape[0], -1, logits.shape[-1])
        mask = inputs.get("attention_mask")
        weights = torch.ones(logits.shape[:2])
        if mask is not None and mask.shape == logits.shape[:2]:
            weights = mask.to(logits.dtype)
        logp = logits.log_softmax(-1)
        flat = logp.detach().exp().reshape(-1, logits.shape[-1])
        labels = torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:2])
        taken = logp.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * weights
        return taken.sum(-1) / weights.sum(-1).clamp_min(1).sqrt()

    def view(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        logits = primary(outputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape == logits.shape[:2]:
            return logits[mask.to(torch.bool)].log_softmax(-1)
        return logits.reshape(-1, logits.shape[-1]).log_softmax(-1)

    def divergence(self, reference: Tensor, view: Tensor) -> Tensor:
        return (reference.exp() * (reference - view)).sum(-1)

    def change(self, reference: Tensor, view: Tensor) -> Tensor:
        return (reference / 2).exp() * (view - reference)


SIGNALS: dict[SignalName, Signal] = {"embedding": Embedding(), "logits": Logits()}


def signal_of(program: Program) -> Signal:
    """`logits` where the first output comes straight from an output layer or classifier, else `embedding`."""
    output = next(node for node in program.module.graph.nodes if node.op == "output")
    node = output.args[0][0] if isinstance(output.args[0], tuple | list) else output.args[0]
    heads = {r.path for s in program.sites if s.role.startswith(("lm_head", "head.classifier")) for r in s.readers}
    return SIGNALS["logits" if node.op == "call_module" and node.target in heads else "embedding"]
