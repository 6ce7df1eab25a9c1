"""`tersor.generate` on the kernels and in plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.zoo import ZOO

import tersor
from tersor.generation import continuing


def test_generates_what_computing_everything_anew_gives() -> None:
    model, example = ZOO["llama"]()
    result = tersor.compile(
        model, tersor.Policy.parse("for linear or embedding choose int8()"), example, backend="numba"
    )
    ids = torch.randint(5, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    for module in (result.module, result.reference):
        wanted = ids
        with torch.inference_mode():
            for _ in range(5):
                logits = module(input_ids=wanted, attention_mask=torch.ones_like(wanted)).logits
                wanted = torch.cat([wanted, logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert torch.equal(tersor.generate(module, ids, 5), wanted)
    assert tersor.generate(result.module, ids, 0) is ids


def compiled() -> tersor.Result:
    model, example = ZOO["llama"]()
    policy = tersor.Policy.parse("budget latency <= 1 s at cached = 20\nfor linear or embedding choose int8()")
    return tersor.compile(model, policy, example, backend="numba")


def test_a_decoder_that_was_kept_generates_what_a_new_one_does() -> None:
    """Prompts shorter, longer and wider than the one the decoder was made for."""
    module = compiled().module
    random = torch.Generator().manual_seed(1)
    for batch, length in ((1, 9), (1, 4), (2, 4), (1, 70), (1, 9)):
        ids = torch.randint(5, 97, (batch, length), generator=random)
        found = tersor.generate(module, ids, 6)
        assert torch.equal(found, tersor.generate(copy.deepcopy(module), ids, 6))


def test_a_budget_on_a_token_after_cached_ones_is_measured_on_that_token() -> None:
    result = compiled()
    (held,) = result.report.budgets
    assert held.name == "latency at batch = 1, tokens = 1, cached = 20, threads = 1"
    assert held.met
    ids = torch.randint(5, 97, (2, 21), generator=torch.Generator().manual_seed(2))
    for module in (result.module, result.reference):
        run = continuing(module, ids, 20)
        with torch.inference_mode():
            wanted = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
            assert torch.equal(run(), wanted)
            assert torch.equal(run(), wanted)


def test_refuses_what_is_not_compiled() -> None:
    with pytest.raises(tersor.RequestError, match="generate takes"):
        tersor.generate(torch.nn.Identity(), torch.zeros(1, 1, dtype=torch.int64), 1)
