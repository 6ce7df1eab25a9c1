"""`tersor.generate` on the kernels and in plain torch."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import ZOO

import tersor


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


def test_refuses_what_is_not_compiled() -> None:
    with pytest.raises(tersor.RequestError, match="generate takes"):
        tersor.generate(torch.nn.Identity(), torch.zeros(1, 1, dtype=torch.int64), 1)
