"""The score of a real change is the divergence that it causes, to within what the probes are known to scatter."""

from __future__ import annotations

import math

import pytest
import torch
from tests.captured import captured
from tests.inputs import inputs_like
from torch import Tensor

from tersor.compiler.candidate import Step, pack
from tersor.compiler.measure.damage import SecondOrder
from tersor.compiler.measure.signal import SIGNALS
from tersor.compiler.method import Refusal
from tersor.compiler.slots import slots
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation

BATCH, LENGTHS, PROBES = 16, (6, 9, 12), 12
SIGMA = math.sqrt(4 / (BATCH * len(LENGTHS) * PROBES))
"""A squared slope has about twice to four times the square of its mean as variance: twice for one Gaussian probe, more
because examples differ. This is the relative standard error of the mean over examples and probes."""

SITES = {
    ("bert", "embedding"): (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.value.weight",
        "encoder.layer.1.output.dense.weight",
    ),
    ("gpt2", "logits"): ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight"),
    ("lstm_tied", "logits"): ("embed.weight", "rnn.weight_hh_l0", "rnn.weight_ih_l1"),
}


@pytest.mark.parametrize(("name", "signal"), SITES)
def test_predicted_and_measured(name: str, signal: str) -> None:
    _, example, program = captured(name)
    view = SIGNALS[signal]  # type: ignore[index]
    batches = [inputs_like(example, BATCH, length) for length in LENGTHS]
    damages = [SecondOrder(program, batches, view, seed=seed) for seed in range(PROBES)]
    run = program.callable().eval()
    names = run.signature.names

    def answers() -> list[Tensor]:
        """In float64: small divergences drown in float32."""
        found = []
        with torch.no_grad():
            for batch in batches:
                inputs = run.bind((), dict(batch))
                outputs = run.graph_module(*[inputs[n] for n in names])
                found.append(view.view([outputs[0].double()], inputs))
        return found

    before = answers()
    for site in (s for s in program.sites if s.name in SITES[name, signal]):
        where = slots(program.module, site)[0]
        weight = program.module.get_submodule(where.path).get_parameter(where.name)
        store = pack(weight, (Step(UniformQuantisation(), Uniform(bits=5, group="row")),))
        assert not isinstance(store, Refusal)
        original, change = weight.detach().clone(), store.dense().detach() - weight.detach()
        predicted = sum(score or 0.0 for damage in damages for score in damage.score(site, [change])) / PROBES
        with torch.no_grad():
            weight.copy_(original + change)
            after = answers()
            weight.copy_(original)
        moved = [view.divergence(p, q).mean() for p, q in zip(before, after, strict=True)]
        measured = float(torch.stack(moved).mean())
        assert measured > 0
        assert predicted == pytest.approx(measured, rel=3.5 * SIGMA), site.name
    assert all(torch.equal(a, b) for a, b in zip(before, answers(), strict=True))
