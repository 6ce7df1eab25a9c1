"""The sites of a captured graph: every parameter once with all its readers, and the attention cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from tersor.compiler.capture.leaves import Candidate, candidate
from tersor.compiler.capture.lift import Lifted
from tersor.compiler.graph import is_transpose, matrix, parameter
from tersor.compiler.policy import glob_matches
from tersor.compiler.roles import Role
from tersor.compiler.roles.annotate import Annotated
from tersor.compiler.site import Kind, Reader, Site


@dataclass
class _Use:
    """What the graph does with one parameter: (kind, role, reader) in execution order."""

    parameter: nn.Parameter
    found: list[tuple[Kind, Role, Reader | None]] = field(default_factory=list)


def find_sites(
    annotated: Annotated,
    lifted: Lifted,
    names: Mapping[int, list[str]],
    roles: Mapping[fx.Node, Role],
    overrides: Mapping[str, str],
) -> tuple[Site, ...]:
    """Sites in the order in which the graph first uses them; `overrides` maps path globs to roles, the last match
    wins."""
    raw = annotated.gm
    calls: dict[str, int] = {}
    uses: dict[int, _Use] = {}
    sites: dict[object, Site] = {}
    for node in raw.graph.nodes:
        path = lifted.paths.get(node.name)
        if node.op == "call_module":
            for held in raw.get_submodule(node.target).parameters():
                _note(uses, sites, held, "other", Role("other", (f"inside the opaque submodule {node.target}",)), None)
        if path is None:
            if is_transpose(node) and matrix(raw, node):
                continue  # its users read the parameter
            for operand in node.all_input_nodes:
                turned = matrix(raw, operand)
                read = parameter(raw, operand) if turned is None else turned[0]
                if read is not None:
                    _note(uses, sites, read, *_unlifted(annotated, node, operand, roles), None)
            continue
        reader = Reader(path, calls.get(path, 0))
        calls[path] = reader.call + 1
        c = candidate(raw, node)
        if c is None:
            continue
        role = roles.get(node, Role("other"))
        if c.kind == "attention":
            sites.setdefault(path, Site(path, "attention", role.name, (path,), (), "", 0, (), role.why))
            sites[path] = _called(sites[path], reader)
        for held, kind, own in _held(c, role, lifted.module.get_submodule(path)):
            _note(uses, sites, held, kind, own, reader)
    found = [_site(uses[key], names, lifted) if isinstance(key, int) else site for key, site in sites.items()]
    return tuple(_overridden(site, overrides) for site in found)


def _note(
    uses: dict[int, _Use],
    sites: dict[object, Site],
    held: nn.Parameter,
    kind: Kind,
    role: Role,
    reader: Reader | None,
) -> None:
    use = uses.setdefault(id(held), _Use(held))
    sites.setdefault(id(held), Site("", kind, "", (), (), "", 0))
    use.found.append((kind, role, reader))


def _held(c: Candidate, role: Role, module: nn.Module) -> list[tuple[nn.Parameter, Kind, Role]]:
    """The parameters of a lifted module with their kinds and roles."""
    if isinstance(module, nn.RNNBase):
        return [(w, *_recurrent(name)) for w, name in zip(c.flat, module._flat_weights_names, strict=True)]
    held: list[tuple[nn.Parameter, Kind, Role]] = []
    if c.weight is not None:
        kind: Kind = {"linear": "linear", "embedding": "embedding"}.get(c.kind, "norm")  # type: ignore[assignment]
        held.append((c.weight, kind, role))
    if c.bias is not None:
        held.append((c.bias, "bias", Role(f"{role.name}.bias", (f"bias of {role.name}", *role.why))))
    return held


_RECURRENT: dict[str, tuple[Kind, str, str]] = {
    "weight_ih": ("recurrent", "recurrent.input", "reads the input"),
    "weight_hh": ("recurrent", "recurrent.hidden", "reads the previous state"),
    "weight_hr": ("recurrent", "recurrent.projection", "projects the state"),
    "bias": ("bias", "recurrent.bias", "is a vector"),
}


def _recurrent(name: str) -> tuple[Kind, Role]:
    kind, role, what = next(value for prefix, value in _RECURRENT.items() if name.startswith(prefix))
    return kind, Role(role, (f"the weight of a recurrent operator that {what}",))


def _unlifted(
    annotated: Annotated, node: fx.Node, operand: fx.Node, roles: Mapping[fx.Node, Role]
) -> tuple[Kind, Role]:
    part = annotated.parts[node]
    if part.kind == "norm" and part.weight is operand:
        return "norm", roles.get(node, Role("norm.other"))
    return "other", Role("other", (f"read by {node.target}, which is not lifted into a module",))


def _called(site: Site, reader: Reader) -> Site:
    return Site(**{**site.__dict__, "readers": (*site.readers, reader)})


def _site(use: _Use, names: Mapping[int, list[str]], lifted: Lifted) -> Site:
    held = use.parameter
    aliases = names[id(held)]
    readers = tuple(reader for _, _, reader in use.found if reader is not None)
    kinds = {kind for kind, _, _ in use.found}
    kind, role, _ = use.found[0]
    why = list(role.why)
    others = dict.fromkeys(r.name for _, r, _ in use.found if r.name != role.name)
    why += [f"also read as {name}" for name in others]
    if "other" in kinds and len(kinds) > 1:
        kind, why = "other", [*why, "also read by an operator that is not lifted"]
    shape = tuple(held.shape)
    if kind == "linear" and readers:
        shape = tuple(lifted.module.get_parameter(f"{readers[0].path}.weight").shape)
    paths = dict.fromkeys(name.removesuffix(".weight") or name for name in aliases)
    if kind in ("linear", "embedding", "norm"):
        paths |= dict.fromkeys(reader.path for reader in readers)
    size = held.numel() * held.element_size()
    return Site(aliases[0], kind, role.name, tuple(paths), shape, str(held.dtype)[6:], size, readers, tuple(why))


def _overridden(site: Site, overrides: Mapping[str, str]) -> Site:
    for glob, role in overrides.items():
        if any(glob_matches(glob, path) for path in site.paths):
            site = Site(**{**site.__dict__, "role": role, "why": (f"set by the caller for {glob!r}",)})
    return site
