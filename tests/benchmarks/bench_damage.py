"""How well the predicted damage of whole plans ranks the measured one, on MiniLM.

    python tests/benchmarks/bench_damage.py [--plans 30] [--examples 64] [--json PATH]

Plans for sizes from the smallest to the largest come from three allocations in turn: by predicted damage, by weight
error, and by predicted damage disturbed at random (a factor of e^N(0, 1) at each choice). The weights of each are put
into the model as floating numbers, inputs are rounded as the kernels do, and its outputs compared with the original's
on held-out sentences. The predictions: what a plan shows (scores corrected by measured choices, and how these act
together), the sum of second-order scores, the sum of relative weight errors, and the sum of the divergences measured
one choice at a time, on sentences that the scores come from: no prediction knows the held-out ones. Needs what
`minilm.py` says.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from minilm import TOKENS, calibration, embed, minilm, pairs, sentences
from scipy.stats import spearmanr
from torch import Tensor

import tersor
from tersor.compiler.allocate import Allocation, allocate
from tersor.compiler.measure.inputs import linears, rounded
from tersor.compiler.measure.price import Choice, pack_chosen
from tersor.compiler.prepare import Prepared, prepare
from tersor.compiler.slots import parameter_of
from tersor.data import batched
from tersor.original import captured
from tersor.passes import METHODS

POLICY = """
for linear or embedding choose uniform(bits = {2, 3, 4, 5, 6, 8}, group = 64, rounding = compensated)
for norm or bias choose half()
"""
Batches = Sequence[Mapping[str, Tensor]]


def disturbed(choices: Mapping[str, Sequence[Choice]], kind: int, seed: int) -> dict[str, tuple[Choice, ...]]:
    """The choices with the damage that a plan of this kind is solved for."""
    rng = np.random.default_rng(seed)
    if kind == 1:
        return {n: tuple(replace(c, damage=c.error) for c in site) for n, site in choices.items()}
    if kind == 2:
        return {
            n: tuple(replace(c, damage=c.damage * float(np.exp(rng.normal()))) for c in site)
            for n, site in choices.items()
        }
    return {n: tuple(site) for n, site in choices.items()}


def plans(choices: Mapping[str, Sequence[Choice]], count: int) -> list[dict[str, Choice]]:
    """Allocations for sizes in equal ratios, in the three ways in turn."""
    ends = [allocate(choices, {}, goal) for goal in ("size", "damage")]
    low, high = (e.bytes for e in ends if isinstance(e, Allocation))
    found = []
    for i, size in enumerate(np.geomspace(low * 1.15, high, count)):
        solved = allocate(disturbed(choices, i % 3, i), {"size": float(size)})
        if isinstance(solved, Allocation):
            by_text = {n: {c.text: c for c in site} for n, site in choices.items()}
            found.append({n: by_text[n][c.text] for n, c in solved.chosen.items()})
    return found


class Bench:
    """The model with some of its weights as they come out of their stores, and their inputs as kernels round them."""

    def __init__(self, prepared: Prepared, batches: Batches) -> None:
        self.prepared, self.batches = prepared, batches
        self.run = copy.deepcopy(prepared.program.callable()).eval()
        self.original = embed(self.run, batches)
        self.dense: dict[tuple[str, str], Tensor] = {}
        self.sites = {site.name: site for site in prepared.program.sites if site.kind != "attention"}

    @torch.no_grad()
    def __call__(self, chosen: Mapping[str, Choice]) -> float:
        """The divergence with some sites as chosen and the others as they are: 1 - mean cosine."""
        before, rounding = {}, []
        for name, choice in chosen.items():
            if choice.candidate is not None:
                group = choice.candidate.input_group
                if group is not None:
                    for path in linears(self.prepared.program, self.sites[name]):
                        leaf = self.run.graph_module.get_submodule(path)
                        rounding.append(leaf.register_forward_pre_hook(lambda _, x, g=group: (rounded(x[0], g),)))
                weight = parameter_of(self.run.graph_module, self.sites[name])
                before[name] = weight.clone()
                weight.copy_(self._dense(choice))
        found = float(1 - (embed(self.run, self.batches) * self.original).sum(-1).double().mean())
        for hook in rounding:
            hook.remove()
        for name, values in before.items():
            parameter_of(self.run.graph_module, self.sites[name]).copy_(values)
        return found

    def _dense(self, choice: Choice) -> Tensor:
        key = choice.site, choice.text
        if key not in self.dense:
            p, one = self.prepared, {choice.site: choice}
            store = pack_chosen(p.program, p.resolution, one, p.forms.of(one))[choice.site]
            self.dense[key] = store.dense().detach()
        return self.dense[key]


def foreseen(prepared: Prepared, plan: Mapping[str, Choice]) -> float:
    """The damage that a plan shows once it was solved for."""
    contenders = prepared.contenders
    if contenders is None:
        raise ValueError("without calibration data nothing is measured")
    contenders.anchor(prepared.packed.of)
    own = contenders.fresh()
    own.learn({name: replace(c, damage=own.damage(c)) for name, c in plan.items()}, prepared.packed.of(plan))
    return own.together(plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--examples", type=int, default=64, help="held-out sentences to compare on")
    parser.add_argument("--calibration", type=int, default=512, help="train sentences to calibrate with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = minilm()
    judged = batched([(t,) for t in sentences(pairs("dev"))[: options.examples]], model, TOKENS)
    program = captured(model.module, model.example, share=True)
    texts = calibration(model, options.calibration)
    prepared = prepare(program, tersor.Policy.parse(POLICY), METHODS, texts)
    bench, known = Bench(prepared, judged), Bench(prepared, calibration(model, options.examples))
    chosen = plans(prepared.measured.choices, options.plans)
    truth = [bench(plan) for plan in chosen]
    alone = {
        (c.site, c.text): c
        for plan in chosen
        for c in plan.values()
        if c.candidate is not None and c.candidate.wants_form
    }
    single = {key: known({key[0]: choice}) for key, choice in alone.items()}
    predictions = {
        "plan": [foreseen(prepared, plan) for plan in chosen],
        "second order": [sum(c.damage for c in p.values()) for p in chosen],
        "one at a time": [sum(single.get((c.site, c.text), 0.0) for c in p.values()) for p in chosen],
        "weight error": [sum(c.error for c in p.values()) for p in chosen],
    }
    sizes = [sum(c.bytes for c in p.values()) for p in chosen]
    print(f"{'bytes':>11} {'measured':>10} " + " ".join(f"{name:>14}" for name in predictions))
    for i, size in enumerate(sizes):
        print(f"{size:11,} {truth[i]:10.5f} " + " ".join(f"{p[i]:14.5f}" for p in predictions.values()))
    ranks = {name: float(spearmanr(p, truth)[0]) for name, p in predictions.items()}
    for name, rank in ranks.items():
        ratio = np.array(truth) / np.array(predictions[name])
        off = float(np.abs(np.log(ratio)).mean())
        print(
            f"{name:14} Spearman {rank:.4f}; measured / predicted {np.quantile(ratio, [0.1, 0.5, 0.9]).round(3)}, "
            f"off by a factor of {np.exp(off):.3f}"
        )
    if options.json:
        taken = [[(c.site, c.text, c.damage) for c in p.values()] for p in chosen]
        found = {"sizes": sizes, "measured": truth, **predictions, "spearman": ranks, "choices": taken}
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
