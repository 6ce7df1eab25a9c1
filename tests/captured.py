"""The zoo, captured: each model once per process, whichever tests ask for it."""

from __future__ import annotations

import functools

import pytest
from tests.zoo import ZOO, Example
from torch import nn

from tersor.compiler.capture import capture
from tersor.compiler.program import Program

Captured = tuple[nn.Module, Example, Program]

ALIKE = ("bert_classifier", "roberta", "distilbert", "torch_encoder_prenorm", "rnn_lm")
"""Models with a closer relative in the zoo: only the slow tests go through them."""


@functools.cache
def captured(name: str) -> Captured:
    """(model, example, program); the program has parameters of its own."""
    model, example = ZOO[name]()
    return model, example, capture(model, example)


MODELS = tuple(pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in ZOO)
"""Every model of the zoo as a parameter."""
