"""What calibration knows about recurrent weights, checked against recurrences written out step by step."""

from __future__ import annotations

import math

import pytest
import torch
from tests.recurrent.conftest import example_of, program_of, tensors
from torch import Tensor, nn

from tersor.compiler.measure.damage import SecondOrder
from tersor.compiler.measure.forms import product_forms
from tersor.compiler.measure.layers import recurrent_inputs
from tersor.compiler.measure.signal import SIGNALS

CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}


def unrolled(layer: nn.RNNBase, x: Tensor, h: Tensor, c: Tensor) -> dict[str, list[Tensor]]:
    """The input and the state before every step, cell by cell; x (batch, tokens, in)."""
    cell_type = CELLS[type(layer).__name__]
    found: dict[str, list[Tensor]] = {}
    row = 0
    for number in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            name = f"l{number}{suffix}"
            cell = cell_type(x.shape[-1], layer.hidden_size)
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(cell, part, getattr(layer, f"{part}_{name}"))
            state, memory = h[row], c[row]
            inputs, states, steps = [], [], []
            order = range(x.shape[1]) if not suffix else range(x.shape[1] - 1, -1, -1)
            for t in order:
                inputs.append(x[:, t])
                states.append(state)
                if isinstance(cell, nn.LSTMCell):
                    state, memory = cell(x[:, t], (state, memory))
                else:
                    state = cell(x[:, t], state)
                steps.append(state)
            found[f"weight_ih_{name}"], found[f"weight_hh_{name}"] = inputs, states
            outputs.append(torch.stack(steps if not suffix else steps[::-1], 1))
            row += 1
        x = torch.cat(outputs, -1)
    return found


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("mode", CELLS)
def test_a_recurrent_weight_reads_the_inputs_and_states_of_its_layer(mode: str, first: bool, both: bool) -> None:
    layer = getattr(nn, mode)(5, 4, 2, batch_first=first, bidirectional=both)
    x, rows = torch.randn(3, 6, 5), 4 if both else 2
    h, c = torch.randn(rows, 3, 4), torch.randn(rows, 3, 4)
    state = (h, c) if mode == "LSTM" else h
    with torch.no_grad():
        expected = unrolled(layer, x, h, c)
    found = recurrent_inputs(layer, x if first else x.transpose(0, 1), state)
    assert found.keys() == expected.keys()
    for name, rows_read in found.items():
        torch.testing.assert_close(rows_read, torch.stack(expected[name], 1))


def test_without_a_state_it_starts_from_zeros() -> None:
    layer, x = nn.GRU(5, 4, batch_first=True), torch.randn(3, 6, 5)
    ours, theirs = recurrent_inputs(layer, x), recurrent_inputs(layer, x, torch.zeros(1, 3, 4))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_form_of_a_weight_is_the_second_moment_of_what_it_reads(model_name: str) -> None:
    program = program_of(model_name)
    sites = [s for s in program.sites if s.kind == "recurrent"]
    batches = [example_of(model_name, 2, 10), example_of(model_name, 3, 7)]
    forms = product_forms(program, sites, batches)
    assert forms.keys() == {s.name for s in sites}
    layer = program.module.get_submodule("rnn")
    embed = program.module.get_submodule("embed")
    assert isinstance(layer, nn.RNNBase)
    expected: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            x = embed(batch["input_ids"])
            zeros = torch.zeros(4, len(x), layer.hidden_size)
            h, c = (batch[n].unsqueeze(0) if n in batch else zeros for n in ("h", "c"))
            for name, rows in unrolled(layer, x, h, c).items():
                flat = torch.cat(rows)
                expected[f"rnn.{name}"] = expected.get(f"rnn.{name}", 0) + flat.T @ flat
    for name, form in forms.items():
        torch.testing.assert_close(form.dense(), expected[name], rtol=1e-4, atol=1e-4)


PROBES = 4


@pytest.mark.parametrize("model_name", ["gru_lm", "stateful"], indirect=True)
def test_the_score_of_a_change_is_the_divergence_it_causes(model_name: str) -> None:
    program, logits = program_of(model_name), SIGNALS["logits"]
    run = program.callable().eval()
    batches = [example_of(model_name, 16, length) for length in (5, 8, 11)]
    damages = [SecondOrder(program, batches, logits, seed=seed) for seed in range(PROBES)]

    def answers() -> list[Tensor]:
        """In float64: divergences of 1e-6 drown in float32."""
        with torch.no_grad():
            return [logits.view([tensors(run(**b))[0].double()], b) for b in batches]

    before = answers()
    for site in (s for s in program.sites if s.role.startswith("recurrent.")):
        weight = run.graph_module.get_parameter(site.name)
        change = 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        predicted = sum(score or 0.0 for damage in damages for score in damage.score(site, [change])) / PROBES
        with torch.no_grad():
            weight += change
            after = answers()
            weight -= change
        measured = torch.stack([logits.divergence(p, q).mean() for p, q in zip(before, after, strict=True)]).mean()
        # The mean of 192 squared slopes, of variance about 4 relative to their mean: within 3.5 standard errors.
        assert predicted == pytest.approx(float(measured), rel=3.5 * math.sqrt(4 / (48 * PROBES))), site.name
