"""SmolLM2-135M under budgets on its bytes and on the time of a token: perplexity and tokens a second before and after.

    python -m tests.benchmarks.bench_smollm [--policy examples/smollm.tersor] [--folder FOLDER] [--tokens 8192]

Perplexity is on the first `--tokens` tokens of WikiText-2 validation, in windows of 512 that do not overlap; the model
is calibrated on the last 1,024. Before: transformers in float32 with its own cache of keys and values. After: the
artifact, loaded from disk onto the CPU kernels. Both take in 64 tokens and then generate greedily, in turns within one
process. `--folder` keeps the artifact: another run measures it again and compiles nothing.

The weights in the package were rounded to 16 levels in blocks of 32 before, so they are easier to round than others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.benchmarks import smollm
from tests.benchmarks.tables import markdown, write
from torch import Tensor, nn

import tersor
from tersor.compiler.artifact.files import disk_size
from tersor.console import progress

PROMPT, NEW = 64, 32


def compiled(policy: Path, folder: Path) -> float | None:
    """Write the artifact; how many seconds that took. None where it is there already."""
    if (folder / "manifest.json").exists():
        return None
    model, example = smollm.model()
    began = time.perf_counter()
    with progress() as report:
        result = tersor.compile(model, policy, example, smollm.calibration(), progress=report)
    result.save(folder)
    return time.perf_counter() - began


def original(model: Any, prompt: Tensor) -> Tensor:
    found: Tensor = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return found


def seconds(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def generated(model: nn.Module, module: nn.Module, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each round, in turns."""
    prompt = smollm.text()[:PROMPT].view(1, -1)
    runs = {"before": lambda: original(model, prompt), "after": lambda: tersor.generate(module, prompt, NEW)}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(NEW / seconds(run))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("examples/smollm.tersor"))
    parser.add_argument("--folder", type=Path, default=Path("out/smollm"))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of smollm.md and smollm.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spent = compiled(given.policy, given.folder)
    model, _ = smollm.model()
    module = tersor.load(given.folder)
    rates = generated(model, module, given.rounds)
    judged = {"before": smollm.perplexity(model, given.tokens), "after": smollm.perplexity(module, given.tokens)}
    size = {"before": 4 * sum(p.numel() for p in model.parameters()), "after": disk_size(given.folder)}
    lines = [
        [name, f"{size[name]:,}", f"{judged[name]:.3f}", f"{max(rates[name]):.1f}", f"{median(rates[name]):.1f}"]
        for name in ("before", "after")
    ]
    heads = ("", "bytes", f"perplexity, {given.tokens} tokens", "tokens/s, best", "median")
    took = f"compiled in {spent:.0f} s" if spent is not None else "compiled before"
    text = "\n".join([given.policy.read_text(), markdown(heads, lines), f"\n{given.threads} threads; {took}"])
    held = {"threads": given.threads, "seconds": spent, "bytes": size, "perplexity": judged, "tokens_per_second": rates}
    write(given.out, "smollm", text, held)
    print(text)


if __name__ == "__main__":
    main()
