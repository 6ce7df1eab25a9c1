"""The graph computes what the model does: every bit of it, at any shape, in training too, gradients included."""

from __future__ import annotations

import pytest
import torch
from tests.captured import MODELS
from tests.inputs import inputs_like, leaves

# Where a product is written otherwise than in the model, so that on some processors its sums round differently: GPT-2
# has its weights transposed, T5 copies a mask into row order where the trace has it so already.
ROUNDING = {"gpt2": 2e-6, "t5": 2e-6}


def run(model, inputs, training, fused=False):
    torch.manual_seed(3)
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        return model.train(training)(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", MODELS)
def test_equal_in_eval_and_train(captured, name):
    model, example, program = captured(name)
    ours = program.callable()
    for batch, length in ((2, 12), (5, 9), (1, 1), (1, 33)):
        inputs = inputs_like(example, batch, length)
        for training in (False, True):
            expected, found = run(model, inputs, training), run(ours, inputs, training)
            assert type(expected) is type(found)
            assert len(leaves(expected)) == len(leaves(found)) > 0
            for a, b in zip(leaves(expected), leaves(found), strict=True):
                torch.testing.assert_close(b, a, rtol=0, atol=ROUNDING.get(name, 0.0))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "albert", "torch_encoder", "lstm_tied", "hand_gpt"])
def test_gradients_equal(captured, name):
    model, example, program = captured(name)
    inputs = inputs_like(example, 3, 8)
    ours = program.callable()
    for module in (model, ours):
        module.zero_grad()
        sum(x.float().square().mean() for x in leaves(run(module, inputs, True))).backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for site in program.sites:
        if not site.readers or site.kind == "attention":
            continue
        leaf = program.module.get_submodule(site.readers[0].path)
        tail = site.name.rpartition(".")[2]
        own = tail if hasattr(leaf, tail) else ("bias" if "bias" in tail else "weight")
        expected, found = parameters[site.name].grad, getattr(leaf, own).grad
        transposed = expected is not None and expected.shape != found.shape
        square = name == "gpt2" and site.name.endswith("attn.c_proj.weight")
        torch.testing.assert_close(found, expected.t() if transposed or square else expected, rtol=0, atol=1e-7)
        compared += 1
    assert compared >= len(program.sites) * 0.6


@pytest.mark.parametrize("name", ["torch_encoder"])
def test_fused_inference_kernels_agree_to_rounding(captured, name):
    """nn.TransformerEncoder has kernels of its own for inference; they round differently."""
    model, example, program = captured(name)
    inputs = inputs_like(example, 3, 8)
    with torch.no_grad():
        fused, ours = run(model, inputs, False, fused=True), run(program.callable(), inputs, False)
    torch.testing.assert_close(ours, fused, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_real_minilm():
    from tests.zoo import minilm

    from tersor.compiler.capture import capture

    try:
        model, example = minilm()
    except LookupError as reason:
        pytest.skip(str(reason))
    program = capture(model, example)
    for inputs in (inputs_like(example, 2, 12), inputs_like(example, 1, 1), inputs_like(example, 3, 128)):
        with torch.no_grad():
            found, expected = run(program.callable(), inputs, False), run(model, inputs, False)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(found.pooler_output, expected.pooler_output)
    assert sum(site.bytes for site in program.sites) == sum(p.numel() * 4 for p in model.parameters())
