"""Tables for people. Plain data for programs is `to_json` of each thing."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tersor.bench import Bench
    from tersor.compiler.plan import Plan, SitePlan
    from tersor.compiler.site import Site
    from tersor.show import Shown

PIPED_WIDTH = 200


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for any table in a pipe. Texts are never markup."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A table without frames; columns named in `right` are numbers."""
    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
    for row in rows:
        made.add_row(*[str(cell) for cell in row])
    return made


def print_lines(lines: Iterable[str]) -> None:
    """Lines that begin with a name, in colours where the terminal has some; a line stays one line."""
    out = console()
    for line in lines:
        text = Text(line)
        text.highlight_regex(r"^\w+", "bold")
        text.highlight_regex(r"\bMISS(ES|ED)\b.*", "red")
        text.highlight_regex(r"\bwithin (size|latency|memory|metric)\b.*?(?=;|$)", "green")
        out.print(text, soft_wrap=True)


def _bytes(count: float) -> str:
    from tersor.compiler.units import bytes_text

    return bytes_text(count)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def methods_table(methods: Iterable[Mapping[str, Any]]) -> Table:
    rows = [(m["id"], m["title"], " ".join(m["kinds"]), " ".join(m["needs"]), _signature(m)) for m in methods]
    return table("", ("method", "what it is", "works on", "needs", "parameters"), rows)


def _signature(method: Mapping[str, Any]) -> str:
    return ", ".join(p["name"] for p in method["params"])


def print_method(method: Mapping[str, Any]) -> None:
    out = console()
    out.print(f"{method['id']}: {method['title']}")
    out.print(f"works on {', '.join(method['kinds'])}; needs {', '.join(method['needs'])}; {method['source']}")
    if method["scope"] == "rule":
        out.print("looks at all sites of a rule together: they take the same choice")
    rows = [
        (p["name"], p["type"], p["range"], "required" if p["required"] else _default(p["default"]), p["description"])
        for p in method["params"]
    ]
    if rows:
        out.print(table("", ("parameter", "type", "values", "default", "meaning"), rows))


def _default(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def print_sites(sites: Sequence[Site], why: bool) -> None:
    out = console()
    total = sum(site.bytes for site in sites)
    columns = ["path", "kind", "role", "shape", "bytes", "uses"] + (["why"] if why else [])
    rows = [
        [s.path, s.kind, s.role, _shape(s.shape), _bytes(s.bytes) if s.bytes else "", len(s.readers)]
        + (["; ".join(s.why)] if why else [])
        for s in sites
    ]
    out.print(table("", columns, rows, right=("bytes", "uses")))
    out.print(f"{len(sites)} sites, {_bytes(total)}")


def print_plan(plan: Plan, every_site: bool) -> None:
    out = console()
    for line in plan_lines(plan):
        out.print(line)
    if every_site:
        rows = [
            (s.path, s.role, _shape(s.shape), s.choice, _change(s), f"{s.damage:.3g}", s.place or "no rule")
            for s in plan.sites
        ]
        columns = ("path", "role", "shape", "choice", "bytes", "damage", "decided by")
        out.print(table("", columns, rows, right=("bytes", "damage")))
    else:
        out.print(
            table(
                "",
                ("kind", "role", "sites", "choices", "bytes", "damage"),
                _groups(plan),
                right=("sites", "bytes", "damage"),
            )
        )
    if plan.refused:
        counted = Counter(r.reason for r in plan.refused)
        what = {r.reason: r.choice for r in reversed(plan.refused)}
        rows_refused = [(count, what[reason], reason) for reason, count in counted.most_common()]
        out.print(table("refused", ("times", "for example", "why"), rows_refused, right=("times",)))
    for note in plan.notes:
        out.print(f"note: {note}")


def plan_lines(plan: Plan) -> list[str]:
    """The totals of a plan."""
    budget = "no size budget" if plan.budget is None else f"budget {_bytes(plan.budget)}"
    ratio = plan.original_bytes / plan.bytes
    basis = f"{plan.calibrated} calibration examples" if plan.calibrated else "weights only: no --data"
    lines = [
        f"size    {_bytes(plan.bytes)} of {_bytes(plan.original_bytes)} ({ratio:.2f} times smaller), {budget}; "
        f"{_bytes(plan.overhead)} of it is the graph and its description",
        f"damage  {plan.damage:.4g} {plan.unit} predicted ({basis})"
        + (f"; no plan within the budget has less than {plan.bound:.4g}" if plan.bound is not None else ""),
    ]
    lines += [f"{b.name.split()[0]:7} {b.text}, {b.name}" for b in plan.budgets if b.name != "size"]
    untouched = [s for s in plan.sites if s.place is None]
    if untouched:
        total = _bytes(sum(s.bytes for s in untouched))
        lines.append(f"kept    {len(untouched)} weights that no rule names stay as they are: {total}")
    return lines


def _change(site: SitePlan) -> str:
    return f"{_bytes(site.original_bytes)} -> {_bytes(site.bytes)}"


def _groups(plan: Plan) -> list[tuple[object, ...]]:
    groups: dict[tuple[str, str], list[SitePlan]] = defaultdict(list)
    for site in plan.sites:
        groups[site.kind, site.role].append(site)
    rows: list[tuple[object, ...]] = []
    for (kind, role), members in groups.items():
        counted = Counter(s.choice for s in members)
        choices = ", ".join(f"{n} x {text}" if len(members) > 1 else text for text, n in counted.most_common())
        before, after = sum(s.original_bytes for s in members), sum(s.bytes for s in members)
        damage = f"{sum(s.damage for s in members):.3g}"
        rows.append((kind, role, len(members), choices, f"{_bytes(before)} -> {_bytes(after)}", damage))
    return rows


def print_shown(shown: Shown) -> None:
    out = console()
    original = f" of {_bytes(shown.original_bytes)}" if shown.original_bytes else ""
    out.print(f"{shown.folder}: {_bytes(shown.bytes)}{original}, checksums right; takes {', '.join(shown.inputs)}")
    rows = [(h.path, h.role, _shape(h.shape), h.choice, h.stored, _bytes(h.bytes)) for h in shown.held]
    out.print(table("", ("path", "role", "shape", "choice", "stored as", "bytes"), rows, right=("bytes",)))
    out.print(table("", ("file", "bytes"), list(shown.files.items()), right=("bytes",)))
    for note in shown.notes:
        out.print(f"note: {note}")


def print_bench(bench: Bench) -> None:
    out = console()
    out.print(table("", ("size", "bytes"), [(n, _bytes(b)) for n, b in bench.bytes.items()], right=("bytes",)))
    rows = [
        (t.name, t.batch, t.tokens, t.threads, f"{t.least * 1e3:.3f}", f"{t.median * 1e3:.3f}", t.runs)
        for t in bench.timings
    ]
    columns = ("time", "batch", "tokens", "threads", "least ms", "median ms", "runs")
    out.print(table("", columns, rows, right=columns[1:]))
    for name, found in bench.fidelity.items():
        out.print(f"{name}: {found.to_text()}")
    for note in bench.notes:
        out.print(f"note: {note}")
