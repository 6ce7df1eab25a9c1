"""A plan as a policy that reproduces it: one rule for each choice, with the sites it was found for and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tersor.compiler.measure.price import Choice
from tersor.compiler.plan import Plan, SitePlan
from tersor.compiler.policy import And, InPath, OfKind, OfRole, Or, Policy, Rule, Selector, selects
from tersor.compiler.site import Site
from tersor.compiler.units import bytes_text
from tersor.dsl import format_policy, write_policy


def written(
    plan: Plan, sites: Sequence[Site], chosen: Mapping[str, Choice], asked: Policy, heading: Sequence[str]
) -> str:
    """The text: the budgets asked for, then the rules, the largest part of the artifact first."""
    by_name = {site.name: site for site in sites}
    groups: dict[str, list[SitePlan]] = defaultdict(list)
    for row in plan.sites:
        choice = chosen[row.site]
        groups[choice.candidate.text if choice.candidate else ""].append(row)
    head = write_policy(Policy(budgets=asked.budgets, objective=asked.objective))
    parts = ["".join(f"# {line}\n" for line in heading), head, "\n"]
    damage = plan.damage or 1.0
    for text, rows in sorted(groups.items(), key=lambda item: -sum(r.bytes for r in item[1])):
        selector = selecting([by_name[row.site] for row in rows], sites)
        parts.append(f"# {_why(rows, damage)}\n")
        rule = write_policy(Policy(rules=(Rule(selector),))).partition("keep ")[2].strip()
        parts.append(f"for {rule} choose {text}\n\n" if text else f"keep {rule}\n\n")
    return format_policy("".join(parts), "policy.tersor")


def _why(rows: Sequence[SitePlan], damage: float) -> str:
    roles = list(dict.fromkeys(row.role if row.role != "other" else row.kind for row in rows))
    named = ", ".join(roles[:4]) + (f" and {len(roles) - 4} other roles" if len(roles) > 4 else "")
    before, after = sum(r.original_bytes for r in rows), sum(r.bytes for r in rows)
    share = sum(r.damage for r in rows) / damage
    rivals = max(r.rivals for r in rows)
    among = f", the best of {rivals + 1} forms" if rivals else ""
    count = f"{len(rows)} weight{'s' if len(rows) > 1 else ''}"
    return f"{count} ({named}): {bytes_text(before)} -> {bytes_text(after)}, {share:.0%} of the damage{among}"


def selecting(wanted: Sequence[Site], sites: Sequence[Site]) -> Selector:
    """A selector that names exactly these sites: by kind where it has all of a kind, by role, else by path."""
    names = {site.name for site in wanted}
    left = dict.fromkeys(site.name for site in wanted)
    parts: list[Selector] = []

    def take(selector: Selector) -> bool:
        found = {site.name for site in sites if selects(selector, site)}
        if not found <= names or not found & left.keys():
            return False
        parts.append(selector)
        for name in found:
            left.pop(name, None)
        return True

    for kind in dict.fromkeys(site.kind for site in wanted):
        take(OfKind(kind))
    for role in dict.fromkeys(site.role for site in wanted):
        take(OfRole(role))
    for site in wanted:
        if site.name in left:
            options: list[Selector] = [InPath(path) for path in site.paths]
            options += [And(OfKind(site.kind), InPath(path)) for path in site.paths]
            next((option for option in options if take(option)), None)
    whole = parts[0]
    for part in parts[1:]:
        whole = Or(whole, part)
    return whole
