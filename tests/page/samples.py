"""Reports to show: one with everything in it, under names that would do harm if they were taken for markup."""

from __future__ import annotations

from dataclasses import replace

from tersor.compiler.plan import Plan, RefusedPlan, SitePlan
from tersor.compiler.report import FrontPoint, Held, Made, Measured, SearchReport, SiteForm

EVIL = "<script>window.harmed = 1</script>"
QUOTED = '" onmouseover="window.harmed = 1" x=\'$x^2$'
ROLE = '$x^2$"<b>&\x07字'
LATENCY = "latency at batch = 1, tokens = 128, threads = 1"
LAYERS = 3


def sites() -> tuple[SitePlan, ...]:
    """An embedding, three layers of two matrices and a bias each, and a head with a name that is an attack."""
    found = [site("embed.weight", "embed", "embedding", "embedding.token", (1000, 64), 64_000)]
    for layer in range(LAYERS):
        for role, short in (("attention.query", "q"), ("ffn.up", "up")):
            name = f"block.{layer}.{short}"
            found.append(site(f"{name}.weight", name, "linear", role, (64, 64), 4_000))
        found.append(site(f"block.{layer}.q.bias", f"block.{layer}.q.bias", "bias", "attention.query.bias", (64,), 150))
    found.append(site(f"{EVIL}.weight", EVIL, "linear", "other", (64, 10), 640))
    return (*found, site("z", QUOTED, "linear", ROLE, (1,), 4))


def site(name: str, path: str, kind: str, role: str, shape: tuple[int, ...], after: int) -> SitePlan:
    count = 1
    for size in shape:
        count *= size
    choice = "quant.uniform(bits = 4)"
    return SitePlan(name, path, kind, role, shape, choice, 4 * count, after, 0.001, 0.01, "policy.tersor:3:1", 5)


def report() -> SearchReport:
    """A search with a front of nine plans, two measured artifacts, a missed budget and refusals."""
    rows = sites()
    size, overhead = sum(s.bytes for s in rows) + 1_000, 1_000
    sizes = [size + 9_000 * step for step in range(-3, 6)]
    points = tuple(
        FrontPoint(b, 0.5 / 4**n, {LATENCY: 0.010 - 0.0004 * n}, met=n > 1, chosen=b == size)
        for n, b in enumerate(sizes)
    )
    latency = {LATENCY: 0.0085}
    return SearchReport(
        model=f"tiny {EVIL}",
        plan=Plan(
            rows, (RefusedPlan("embed.weight", "decomp.svd(rank = 1)", "a refusal & its <b>reason</b>"),) * 2,
            sum(s.original_bytes for s in rows), size, overhead, points[3].damage, 0.0075, "1 - cosine", size + 100.0,
            40, (),
        ),
        forms=(
            *(SiteForm(s.site, 8 * s.bytes / (s.original_bytes / 4), None, None) for s in rows[:-2]),
            SiteForm(rows[-2].site, 3.0, 0.9, None), SiteForm(rows[-1].site, 4.0, None, 7),
        ),
        budgets=(
            Held("size", size + 100.0, float(size), float(size), True, "within"),
            Held(LATENCY, 0.008, 0.0084, 0.0085, False, "MISSES"),
        ),
        front=points,
        contenders=(
            Measured(size + 5_000, {"damage": 0.006, "size": size + 5_000.0},
                     {**latency, LATENCY: 0.009, "damage": 0.005, "size": size + 5_000.0}),
            Measured(size, {"damage": 0.0078, "size": float(size), LATENCY: 0.0084},
                     {**latency, "damage": 0.0060, "size": float(size)}),
        ),
        fidelity={"signal": "embedding", "unit": "1 - cosine", "vectors": 20, "mean": 0.006, "worst": 0.02,
                  "agreement": None, "on": "held-out data"},
        policy=f"# {EVIL}\nbudget size <= 80 kB\n\nfor linear choose uniform(bits = 4)\n",
        seconds={"calibrating": 3.5, "timing": 61.0},
        made=Made(f"tersor search 'm{EVIL}' --size 80kB", QUOTED, "2026-01-02 03:04 UTC", "A processor", 2, 1,
                  "Linux x86_64", {"tersor": "0.0", "torch": "2"}),
        original={LATENCY: 0.02},
        missed=(f"{LATENCY} <= 8.000 ms is not met; raise the budget to 8.6 ms {EVIL}",),
        notes=(f"a note {EVIL}",),
    )  # fmt: skip


def compilation() -> SearchReport:
    """What a compilation without budgets and data shows."""
    whole = report()
    plan = replace(whole.plan, refused=(), budget=None, calibrated=0)
    return replace(
        whole, plan=plan, budgets=(), front=(), contenders=(), fidelity=None, seconds={}, missed=(), original={}
    )
