"""`recover { ... }`: how the compressed model is trained back; teacher, loss terms and settings checked in shape."""

from __future__ import annotations

from tersor.compiler.policy import Point, Recover, Share, Term, Use, Value
from tersor.dsl import syntax
from tersor.dsl.names import Methods, fitting
from tersor.dsl.problems import Problems, listed, place
from tersor.dsl.spaces import bound_of, point_of, space_of
from tersor.dsl.uses import arguments_of, check_use, too_many

# What each setting must be: a whole number from 1, a number from 0, a share of the whole, or more than 0.
SETTINGS = {
    "steps": "a whole number from 1",
    "epochs": "a whole number from 1",
    "batch": "a whole number from 1",
    "seed": "a whole number from 0",
    "lr": "a number above 0",
    "warmup": "a number or a share from 0",
    "weight_decay": "a number from 0",
    "schedule": "a name",
}


def check_recover(recover: syntax.Recover, methods: Methods, problems: Problems) -> Recover:
    """The meaning of a recovery, as far as it is sound; every reason against the rest is reported."""
    teacher: str | None = None
    loss: tuple[Term, ...] = ()
    settings: list[tuple[str, Value]] = []
    first: dict[str, syntax.Teacher | syntax.Loss | syntax.Setting] = {}
    for item in recover.items:
        key = item.name.text if isinstance(item, syntax.Setting) else type(item).__name__.lower()
        earlier = first.setdefault(key, item)
        if earlier is not item:
            problems.add("E107", f"`{key}` is given twice", item.span, notes=(f"first at {place(earlier.span)}",))
            continue
        match item:
            case syntax.Teacher(name, _):
                teacher = name.text
            case syntax.Loss(terms, _):
                checked = [_term(term, methods, problems) for term in terms]
                loss = tuple(term for term in checked if term is not None)
            case syntax.Setting():
                value = _setting(item, problems)
                if value is not None:
                    settings.append((key, value))
    return Recover(teacher, loss, tuple(settings), recover.span)


def _term(term: syntax.Term, methods: Methods, problems: Problems) -> Term | None:
    """A weighted loss. A loss that is a method (`kd.*`) is checked like one; any other is taken as it is written."""
    weight = 1.0 if term.weight is None else float(term.weight.value)
    if term.weight is not None and weight <= 0:
        problems.add("E123", "the weight of a loss is more than 0", term.weight.span)
        return None
    losses = {name: method for name, method in methods.items() if name.startswith("kd.")}
    if fitting(term.use.method.text, losses):
        use = check_use(term.use, losses, (), problems)
        return None if use is None else Term(weight, use)
    spaces = [(a.name.text, space_of(a.space, problems)) for a in arguments_of(term.use, problems)]
    sound = tuple((name, space) for name, space in spaces if space is not None)
    if too_many([space for _, space in sound], term.use.span, problems):
        return None
    return Term(weight, Use(term.use.method.text, sound, term.use.span))


def _setting(setting: syntax.Setting, problems: Problems) -> Value | None:
    name = setting.name.text
    if name not in SETTINGS:
        help = problems.suggest(name, SETTINGS, f"settings are {listed(['teacher', 'loss', *SETTINGS])}")
        problems.add("E125", f"recovery has no setting `{name}`", setting.name.span, help=help)
        return None
    wanted = SETTINGS[name]
    point = bound_of(setting.value) if isinstance(setting.value, syntax.Number) else point_of(setting.value)
    if not _fits(point, wanted):
        problems.add("E123", f"`{name}` is {wanted}", setting.value.span)
        return None
    return point.fraction if isinstance(point, Share) else point  # type: ignore[return-value]  # a call fits no setting


def _fits(point: Point, wanted: str) -> bool:
    if wanted == "a name":
        return isinstance(point, str)
    if isinstance(point, Share):
        return "share" in wanted and point.fraction >= 0
    if isinstance(point, bool) or not isinstance(point, (int, float)):
        return False
    if wanted.startswith("a whole number"):
        return isinstance(point, int) and point >= int(wanted[-1])
    return point > 0 if "above" in wanted else point >= 0
