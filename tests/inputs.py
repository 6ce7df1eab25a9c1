"""Inputs of other shapes for the models of the zoo, made without any help from the code under test, and the tensors of
what they return."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tests.zoo import VOCAB
from torch import Tensor
from torch.utils import _pytree as pytree


def inputs_like(example: Mapping[str, Tensor], batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    made = {}
    for name in example:
        size = (batch, max(1, length - 2) if name.startswith("decoder") else length)
        if name.endswith("attention_mask"):
            made[name] = torch.ones(size, dtype=torch.long)
            made[name][-1, (length + 1) // 2 :] = 0
        elif name == "token_type_ids":
            made[name] = torch.randint(0, 2, size, generator=generator)
        else:
            made[name] = torch.randint(5, VOCAB, size, generator=generator)
    return made


def leaves(output: object) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
