"""The second-order score against one backward pass per example, kept dense; and against the divergence it stands
for."""

from __future__ import annotations

import pytest
import torch
from tests.captured import captured
from tests.inputs import inputs_like
from torch import Tensor

from tersor.compiler.errors import RequestError
from tersor.compiler.measure.collect import Batch
from tersor.compiler.measure.damage import SecondOrder, WeightError, relative_error
from tersor.compiler.measure.signal import SIGNALS
from tersor.compiler.program import Program
from tersor.compiler.slots import parameter_of, slots

BF16 = 2.0**-7
"""Inputs and gradients are kept in bfloat16, 2^-9 of each off: a product is off by 2^-8, its square by 2^-7; the sum of
a slope may cancel, so that this holds against the root of the summed squares of the examples' gradients times the
change."""

SITES = {
    "bert": ("encoder.layer.0.attention.self.query.weight", "embeddings.word_embeddings.weight"),
    "albert": ("encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",),
    "lstm_tied": ("embed.weight", "rnn.weight_hh_l0"),
    "gru_lm": ("rnn.weight_ih_l0", "decoder.weight"),
}


def batches(name: str) -> list[Batch]:
    example = captured(name)[1]
    return [inputs_like(example, 3, 7), inputs_like(example, 2, 9)]


def slopes(program: Program, name: str, site: str, signal: str) -> list[Tensor]:
    """df/dW of every example, with the probes drawn for whole batches as the calibration draws them."""
    where = {slot for s in program.sites if s.name == site for slot in slots(program.module, s)}
    parameters = [getattr(program.module.get_submodule(path), own) for path, own in where]
    generator = torch.Generator().manual_seed(0)
    run, found = program.callable().eval(), []
    for batch in batches(name):
        inputs = run.bind((), dict(batch))
        outputs = run.graph_module(*[inputs[n] for n in run.signature.names])
        probes = SIGNALS[signal].probe(outputs, inputs, generator)  # type: ignore[index]
        for probe in probes:
            unique = list({id(p): p for p in parameters}.values())
            found.append(sum(torch.autograd.grad(probe, unique, retain_graph=True)))
    return found


@pytest.mark.parametrize("signal", ["embedding", "logits"])
@pytest.mark.parametrize(("name", "site"), [(n, s) for n, sites in SITES.items() for s in sites if "rnn" not in s])
def test_equals_a_backward_pass_per_example(name: str, site: str, signal: str) -> None:
    program = captured(name)[2]
    described = next(s for s in program.sites if s.name == site)
    damage = SecondOrder(program, batches(name), SIGNALS[signal])  # type: ignore[index]
    changes = [0.1 * torch.randn(described.shape, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = list(damage.score(described, changes))
    gradients = slopes(program, name, site, signal)
    assert damage.schedule.examples == len(gradients) == 5
    for change, score in zip(changes, found, strict=True):
        expected = sum(float((g * change).sum()) ** 2 for g in gradients) / 10
        scale = sum(float((g * change).square().sum()) for g in gradients) / 10
        assert score == pytest.approx(expected, abs=4 * BF16 * (expected + scale))
        assert expected > 0


@pytest.mark.parametrize("signal", ["embedding", "logits"])
@pytest.mark.parametrize(("name", "site"), [(n, s) for n, sites in SITES.items() for s in sites if "rnn" in s])
def test_recurrent_weights_equal_a_backward_pass_per_example(name: str, site: str, signal: str) -> None:
    """Their probes are drawn example by example, and their slopes are kept in full."""
    program = captured(name)[2]
    described = next(s for s in program.sites if s.name == site)
    (where,) = slots(program.module, described)
    weight = getattr(program.module.get_submodule(where.path), where.name)
    changes = [0.1 * torch.randn(described.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    damage = SecondOrder(program, batches(name), SIGNALS[signal])  # type: ignore[index]
    generator, run, gradients = torch.Generator().manual_seed(0), program.callable().eval(), []
    for batch in batches(name):
        for i in range(len(batch["input_ids"])):
            inputs = run.bind((), {n: v[i : i + 1] for n, v in batch.items()})
            outputs = run.graph_module(*[inputs[n] for n in run.signature.names])
            probe = SIGNALS[signal].probe(outputs, inputs, generator)  # type: ignore[index]
            gradients.append(torch.autograd.grad(probe.sum(), weight)[0].double())
    assert damage.schedule.examples == len(gradients) == 5
    for change, score in zip(changes, damage.score(described, changes), strict=True):
        expected = sum(float((g * change).sum()) ** 2 for g in gradients) / 10
        assert score == pytest.approx(expected, rel=1e-4)
        assert expected > 0


def test_several_passes_score_as_one_does() -> None:
    program = captured("bert")[2]
    one = SecondOrder(program, batches("bert"), SIGNALS["embedding"])
    several = SecondOrder(program, batches("bert"), SIGNALS["embedding"], memory=30_000)
    assert len(one.schedule.groups) == 2  # embeddings come alone
    assert len(several.schedule.groups) > 2
    assert one.schedule.examples == several.schedule.examples
    for site in program.sites:
        if site.kind in ("linear", "embedding"):
            change = 0.1 * torch.randn(site.shape, generator=torch.Generator().manual_seed(0))
            (found,), (expected,) = several.score(site, [change]), one.score(site, [change])
            assert (found or 0) > 0 or "pooler" in site.name  # the signal does not reach the pooler
            assert found == pytest.approx(expected)


def test_no_examples_and_no_judgement() -> None:
    program = captured("gru_lm")[2]
    with pytest.raises(RequestError, match="no examples"):
        SecondOrder(program, [], SIGNALS["logits"])
    site = program.sites[0]
    weight = parameter_of(program.module, site)
    assert list(WeightError().score(site, [weight, weight])) == [None, None]
    assert relative_error(weight, -weight) == pytest.approx(1.0)
    assert relative_error(weight, 0 * weight) == 0
    assert relative_error(0 * weight, 0 * weight) == 0
