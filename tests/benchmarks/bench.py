"""Everything against the machine's limits and the best peers present, in one run: out/bench.md and out/bench.json.

    python -m tests.benchmarks.bench [--parts linears minilm bert lstm gru decoder] [--threads 1 2] [--add]

The ceilings of the machine are measured first. All contenders of a row are then timed in turns in one process. With
`--add` the rows of an earlier run stay beside those of this one, which take their place where they are of the same
thing; so a busy machine can be measured part by part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_decoder, bench_linears, bench_models, ceilings
from tests.benchmarks.ceilings import Ceilings
from tests.benchmarks.peers.present import Present, present
from tests.benchmarks.subjects import SUBJECTS
from tests.benchmarks.tables import write

PARTS = ("linears", *SUBJECTS, "decoder")
NAME = "bench"

Rows = list[dict[str, Any]]
MEASURED = ("least", "median", "limit", "cosine", "cosine_least", "best", "rate")
"""What a row has measured; all else says of what."""


def of_what(row: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in row.items() if key not in MEASURED)


def merged(old: Rows, new: Rows) -> Rows:
    """New rows in place of those of the same, after the others."""
    again = {of_what(row) for row in new}
    return [row for row in old if of_what(row) not in again] + new


def text(held: Mapping[str, Any]) -> str:
    lists = ("bits", "dot_operations", "sizes", "bandwidths")
    found = [Ceilings(**{**c, **{name: tuple(c[name]) for name in lists}}) for c in held["ceilings"]]
    parts = [held["peers"], ceilings.table(found)]
    tables: Sequence[tuple[str, Callable[[Any], str], type[Any]]] = (
        ("linears", bench_linears.table, bench_linears.Row),
        ("models", bench_models.table, bench_models.Row),
        ("decoder", bench_decoder.table, bench_decoder.Row),
    )
    parts += [table([row(**r) for r in held[name]]) for name, table, row in tables if held[name]]
    return "\n\n".join([*parts, *held["failures"]])


def run(
    given: argparse.Namespace, peers: Present, limits: Mapping[int, Ceilings], leave: Callable[[str, Rows], None]
) -> list[str]:
    """Measure the parts asked for; `leave` keeps rows as they come. What a peer cannot do is returned."""
    failures: list[str] = []
    for part in given.parts:
        began = time.perf_counter()
        if part == "linears":
            for threads in given.threads:
                for shape in given.shapes:
                    for tokens in given.tokens:
                        rows = bench_linears.measured(shape, tokens, limits[threads], peers, given.seconds / 6)
                        leave("linears", [asdict(row) for row in rows])
        elif part == "decoder":
            leave("decoder", [asdict(row) for row in bench_decoder.measured(given.threads, given.folder, failures)])
        else:
            found = bench_models.measured(SUBJECTS[part](), peers, given.threads, given.seconds, failures)
            leave("models", [asdict(row) for row in found])
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=bench_linears.TOKENS, help="of linears")
    parser.add_argument(
        "--shapes", nargs="+", type=bench_linears.shape, default=bench_linears.SHAPES, help="of linears"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each contender of a model; a linear has a sixth"
    )
    parser.add_argument("--add", action="store_true", help="keep the rows of an earlier run")
    parser.add_argument("--folder", type=Path, default=Path("out/decoder"), help="keeps the compiled decoder")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of bench.md and bench.json")
    given = parser.parse_args()
    peers = present()
    print(peers, flush=True)
    limits = {threads: ceilings.measure(threads) for threads in given.threads}
    print(ceilings.table(list(limits.values())), flush=True)
    before = given.out / f"{NAME}.json"
    held: dict[str, Any] = {"linears": [], "models": [], "decoder": [], "failures": [], "ceilings": []}
    if given.add and before.exists():
        held = json.loads(before.read_text(encoding="utf-8"))
    others = [c for c in held["ceilings"] if c["threads"] not in limits]
    held["ceilings"] = sorted([*others, *(asdict(c) for c in limits.values())], key=lambda c: int(c["threads"]))
    held["peers"] = str(peers)

    def leave(part: str, rows: Rows) -> None:  # a long run that is cut short has left something
        held[part] = merged(held[part], rows)
        write(given.out, NAME, text(held), held)

    failures = run(given, peers, limits, leave)
    held["failures"] = list(dict.fromkeys([*held["failures"], *failures]))
    write(given.out, NAME, text(held), held)
    print("\n" + text(held))


if __name__ == "__main__":
    main()
