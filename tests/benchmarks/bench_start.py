"""How soon a process is ready, how long kernels take to compile, and what a loaded model keeps in memory.

    python -m tests.benchmarks.bench_start [--models minilm bert] [--tokens 128] [--out FOLDER]

Every row is a process of its own, at 8 bits and one thread. Its clock starts when torch is imported; `load` is from
there to a loaded model (the import of tersor, numba and llvmlite in it), `first call` the call after that, which binds
the program to its shape. With an empty cache both contain the compilation of kernels: `compiled` is what they take
more than with a warm one. Seconds are those of the processor, with those on the clock in brackets. Of transformers
nothing is imported: outputs are read as a tuple of the graph. `resident` is what the process holds after a call beyond
what it held before it loaded the model, `peak` the most in between, both in bytes of memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import markdown, write

POLICY = "for linear or embedding choose int8()"
MODELS = ("minilm", "bert")
NAMES = {"minilm": "MiniLM-L6", "bert": "BERT-base size"}


def made(name: str, folder: Path) -> int:
    """Write the artifact of a model; the bytes that loading it reads."""
    import torch
    from tests.benchmarks.subjects import _minilm_folder
    from transformers import AutoModel, BertConfig, BertModel

    import tersor
    from tersor.compiler.artifact.files import disk_size

    torch.manual_seed(0)
    model: Any = AutoModel.from_pretrained(_minilm_folder()) if name == "minilm" else BertModel(BertConfig())
    ids = torch.arange(2000, 2020).view(2, 10)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    tersor.compile(model.eval(), tersor.Policy.parse(POLICY), example, backend="eager").save(folder)
    return disk_size(folder)


def _inputs(tokens: int) -> tuple[Any, ...]:
    import torch

    ids = torch.arange(2000, 2000 + tokens).view(1, -1)
    return ids, torch.ones_like(ids), torch.zeros_like(ids)


def _spent(run: Callable[[], Any]) -> tuple[Any, list[float]]:
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, [time.process_time() - processor, time.perf_counter() - wall]


def start(folder: Path, tokens: int) -> dict[str, Any]:
    """[seconds of the processor, seconds on the clock] of loading, of the first call and of the second."""
    import torch

    torch.set_num_threads(1)

    def load() -> Any:
        import tersor

        return tersor.load(folder, "numba").graph_module

    graph, loaded = _spent(load)
    with torch.inference_mode():
        calls = [_spent(lambda: graph(*_inputs(tokens)))[1] for _ in range(2)]
    return {"load": loaded, "first": calls[0], "second": calls[1]}


def memory(folder: Path, tokens: int) -> dict[str, Any]:
    """Bytes: resident after a call, and at most, both beyond what the libraries take."""
    import torch

    import tersor.backends.numba.backend  # noqa: F401 - a library like torch
    from tersor.backends.numba.build import norm_kernel
    from tersor.backends.numba.features import detect
    from tersor.backends.numba.rowkernels import NormSpec
    from tersor.loading import load
    from tersor.peak import resident

    torch.set_num_threads(1)
    norm_kernel(NormSpec(detect().name))  # the first kernel makes numba import the rest of itself
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    module: Any = load(folder, "numba")
    with torch.inference_mode():
        module.graph_module(*_inputs(tokens))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and not given back is not held by the model
    return {"resident": resident("VmRSS") - before, "peak": resident("VmHWM") - before}


def child(what: str, folder: Path, tokens: int, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_start", "--child", what, str(folder), str(tokens)]
    environment = {**os.environ, "TERSOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def measured(name: str, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        size = made(name, folder)
        empty = child("start", folder, tokens, cache)
        warm = min((child("start", folder, tokens, cache) for _ in range(3)), key=lambda x: x["load"][0])
        held = child("memory", folder, tokens, cache)
    compiled = [sum(empty[x][i] - warm[x][i] for x in ("load", "first")) for i in (0, 1)]
    return {"model": NAMES[name], "bytes": size, "empty": empty, "warm": warm, "compiled": compiled, **held}


def table(rows: list[dict[str, Any]]) -> str:
    def seconds(pair: list[float]) -> str:
        return f"{pair[0]:.2f} ({pair[1]:.2f})"

    lines = [
        [row["model"], seconds(row["compiled"]), seconds(row["warm"]["load"]), seconds(row["warm"]["first"]),
         f"{row['bytes'] / 1e6:.1f} MB", f"{row['resident'] / 1e6:.1f} MB", f"{row['peak'] / 1e6:.1f} MB"]
        for row in rows
    ]  # fmt: skip
    heads = ("model", "compiled, s", "load, s", "first call, s", "on disk", "resident", "peak")
    return markdown(heads, lines)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        import torch  # noqa: F401 - before the clock starts

        what, folder, tokens = sys.argv[2:5]
        print(json.dumps({"start": start, "memory": memory}[what](Path(folder), int(tokens))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of start.md and start.json")
    given = parser.parse_args()
    rows = [measured(name, given.tokens) for name in given.models]
    write(given.out, "start", table(rows), {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
