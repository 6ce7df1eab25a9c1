"""What the benchmarks of recurrent models share: compile under a budget, save, load from disk, report."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from tersor.compiler.artifact.files import disk_size

POLICY = """\
budget size <= {share:.4f}%
for linear or embedding or recurrent choose uniform(bits = 2..8, group = {{32, 64, row}}, rounding = {rounding})
for bias choose half()
"""
BUDGETS = (1 / 4, 1 / 6, 1 / 8)
ROUNDINGS = ("nearest", "compensated")


@dataclass(frozen=True)
class Outcome:
    """One budget and rounding: bytes of the files that loading reads, and the metric of the model loaded from them.
    `fixed_bytes` is what lies on disk besides stored arrays: graph, manifest, header. `predicted` and `diverged` are
    the KL divergence (nats per output) that was planned, and the one on data held out of the calibration."""

    budget: str
    rounding: str
    original_bytes: int
    artifact_bytes: int
    times_smaller: float
    fixed_bytes: int
    before: float
    after: float
    predicted: float
    diverged: float
    seconds: float
    choices: Mapping[str, str]


def compiled(
    model: nn.Module, data: Sequence[Mapping[str, Tensor]], metric: Callable[[nn.Module], float]
) -> list[Outcome]:
    """Every budget and rounding: compile, save, load what was saved, and measure that."""
    before = metric(model)
    return [_outcome(model, data, metric, before, share, rounding) for share in BUDGETS for rounding in ROUNDINGS]


def _outcome(
    model: nn.Module,
    data: Sequence[Mapping[str, Tensor]],
    metric: Callable[[nn.Module], float],
    before: float,
    share: float,
    rounding: str,
) -> Outcome:
    policy = tersor.Policy.parse(POLICY.format(share=100 * share, rounding=rounding))
    begun = time.perf_counter()
    result = tersor.compile(model, policy, data[0], data, signal="logits")
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        saved = result.save(folder)
        on_disk = disk_size(saved)
        after = metric(tersor.load(folder))
    report = result.report
    if on_disk > share * report.original_bytes or report.fidelity is None:
        sys.exit(f"{on_disk} bytes on disk are more than {share:.2%} of {report.original_bytes}")
    arrays = sum(store.nbytes() for store in result.planned.stores.values())
    return Outcome(
        budget=f"1/{1 / share:g}",
        rounding=rounding,
        original_bytes=report.original_bytes,
        artifact_bytes=on_disk,
        times_smaller=report.original_bytes / on_disk,
        fixed_bytes=on_disk - arrays,
        before=before,
        after=after,
        predicted=report.damage,
        diverged=report.fidelity.mean,
        seconds=seconds,
        choices={row.path: row.choice for row in result.plan.sites},
    )


def arguments(description: str | None) -> argparse.Namespace:
    """`--json PATH` and `--choices`; one thread, so that times can be compared."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was measured as JSON")
    parser.add_argument("--choices", action="store_true", help="print what was chosen for every weight")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def show(metric: str, outcomes: Sequence[Outcome], given: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """The table, and the JSON where it was asked for."""
    names = ("budget", "rounding", "bytes", "smaller", metric, "change", "KL plan", "KL", "seconds")
    print("\n" + "{:>7} {:>12} {:>9} {:>8} {:>15} {:>8} {:>8} {:>8} {:>8}".format(*names))
    first = outcomes[0]
    print(f"{'none':>7} {'':>12} {first.original_bytes:>9,} {'1.00x':>8} {first.before:>15.4f}")
    for o in outcomes:
        size = f"{o.budget:>7} {o.rounding:>12} {o.artifact_bytes:>9,} {o.times_smaller:>7.2f}x"
        divergence = f"{o.predicted:>8.5f} {o.diverged:>8.5f}"
        print(f"{size} {o.after:>15.4f} {o.after - o.before:>+8.4f} {divergence} {o.seconds:>8.1f}")
        if given.choices:
            print("\n".join(f"{'':>8}{path}: {choice}" for path, choice in o.choices.items()))
    fixed = ", ".join(f"{o.fixed_bytes:,}" for o in outcomes)
    print(f"of these bytes {fixed} are graph, manifest and headers; KL in nats per prediction, on data held out")
    if given.json:
        content = {**facts, "metric": metric, "threads": given.threads, "outcomes": [asdict(o) for o in outcomes]}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
