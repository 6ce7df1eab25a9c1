"""The command line.

Exit codes: 0 done, 2 the request is wrong, 3 the budget cannot be met, 4 the model cannot be captured, 1 a bug of ours.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from tersor import __version__
from tersor.console import diagnostic_json, guarded, print_json, progress, report

app = typer.Typer(
    name="tersor",
    help="Make deep-learning models for text smaller and faster, as a policy says.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, or package.module:function.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact written by `tersor compile`.")]
PolicyOption = Annotated[Path, typer.Option("--policy", help="The policy file.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", help="Text (one example a line), JSONL or CSV, or package.module:function yielding batches."
    ),
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Column names of JSONL or CSV: one, or two for pairs.")
]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Where examples are cut.")]
SignalOption = Annotated[
    str | None, typer.Option("--signal", help="What must stay: embedding or logits (default: found).")
]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, eager or numba.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tersor {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make deep-learning models for text smaller and faster, as a policy says."""


@app.command()
def check(
    policies: Annotated[list[Path], typer.Argument(metavar="POLICY...", help="Policy files.")], json: JsonOption = False
) -> None:
    """Parse and validate policies, without a model."""
    from tersor.compiler.diagnostics import PolicyError
    from tersor.compiler.supported import unsupported
    from tersor.policies import Policy

    documents, wrong = [], False
    for path in policies:
        try:
            policy = Policy.read(path)
        except PolicyError as problem:
            found, good = problem.diagnostics, False
        else:
            # The policy is right; that this version cannot carry all of it out is said, and refused by `plan`.
            found, good = tuple(_as_warning(d) for d in unsupported(policy)), True
        wrong = wrong or not good
        report(found)
        documents.append({"file": str(path), "ok": good, "diagnostics": [diagnostic_json(d) for d in found]})
        if good and not json:
            typer.echo(f"{path}: ok, {len(policy.rules)} rules")
    if json:
        print_json({"ok": not wrong, "policies": documents})
    if wrong:
        raise typer.Exit(2)


def _as_warning(diagnostic: Any) -> Any:
    from dataclasses import replace

    return replace(diagnostic, severity="warning")


@app.command()
def fmt(
    policies: Annotated[list[Path], typer.Argument(metavar="POLICY...", help="Policy files.")],
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 2 if a layout is not canonical.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring policies into their canonical layout."""
    from tersor.compiler.errors import RequestError
    from tersor.dsl import format_policy, read_text

    texts = {path: read_text(path) for path in policies}
    formatted = {path: format_policy(text, str(path)) for path, text in texts.items()}
    changed = [path for path in policies if texts[path] != formatted[path]]
    for path in changed:
        if not check_only:
            try:
                path.write_text(formatted[path], encoding="utf-8", newline="")
            except OSError as problem:
                raise RequestError(f"{path} cannot be written: {problem.strerror or problem}") from None
        if not json:
            typer.echo(f"{path}: {'not in canonical layout' if check_only else 'changed'}")
    if json:
        print_json({"changed": [str(path) for path in changed], "written": not check_only})
    if changed and check_only:
        raise typer.Exit(2)


@app.command()
def methods(
    method: Annotated[str | None, typer.Argument(metavar="[ID]", help="One method in full.")] = None,
    json: JsonOption = False,
) -> None:
    """Every method: what it is, where it applies, its parameters."""
    from tersor import catalogue, render

    found = [catalogue.describe(catalogue.method_named(method))] if method else catalogue.methods()
    if json:
        print_json(found[0] if method else found)
    elif method:
        render.print_method(found[0])
    else:
        render.console().print(render.methods_table(found))


@app.command()
def sites(
    model: ModelArgument,
    why: Annotated[bool, typer.Option("--why", help="Say how each role was found.")] = False,
    json: JsonOption = False,
) -> None:
    """The model as Tersor sees it: what a policy can name."""
    from dataclasses import asdict

    from tersor import api, render
    from tersor.models import read_model

    given = read_model(model)
    found = api.sites(given.module, given.example)
    if json:
        print_json([{**asdict(site), "path": site.path, "params": site.params} for site in found])
    else:
        render.print_sites(found, why)


@app.command()
def plan(
    model: ModelArgument,
    policy: PolicyOption,
    data: DataOption = None,
    columns: ColumnsOption = None,
    max_tokens: TokensOption = 128,
    signal: SignalOption = None,
    every_site: Annotated[bool, typer.Option("--all", help="Show every site.")] = False,
    json: JsonOption = False,
) -> None:
    """What would happen, and why; writes nothing."""
    from tersor import render
    from tersor.jobs import Job

    with progress() as shown:
        found = Job.read(model, policy, data, columns, max_tokens, signal).plan(shown)
    if json:
        print_json(found.to_json())
    else:
        render.print_plan(found, every_site)


@app.command("compile")
def compile_command(
    model: ModelArgument,
    policy: PolicyOption,
    out: Annotated[Path, typer.Option("--out", help="The folder of the artifact.")],
    data: DataOption = None,
    columns: ColumnsOption = None,
    max_tokens: TokensOption = 128,
    signal: SignalOption = None,
    backend: BackendOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Compile again though the artifact is up to date.")] = False,
    json: JsonOption = False,
) -> None:
    """Compress a model, verify the artifact, and measure what became of it."""
    from tersor.jobs import Job

    with progress() as shown:
        job = Job.read(model, policy, data, columns, max_tokens, signal, out)
        done, found = job.compile(out, backend, force, shown, typed())
    if json:
        print_json({"out": str(out), "up_to_date": not done, **found.to_json()})
        return
    if not done:
        typer.echo(f"{out} is up to date: made from this model, policy and data (--force compiles again)")
    for line in found.lines():
        typer.echo(line)


@app.command()
def search(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder of the artifact; what is measured is kept there.")],
    data: DataOption = None,
    size: Annotated[str | None, typer.Option("--size", help="A budget on size: 12MB, 20%.")] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option("--latency", help="A budget on latency: 8ms, '8ms at batch = 1, tokens = 128'; may be repeated."),
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="A budget on peak memory: 200MiB.")] = None,
    minimize: Annotated[str, typer.Option("--minimize", help="damage, size or latency (default: damage).")] = "",
    policy: Annotated[Path | None, typer.Option("--policy", help="What may be done (default: by the model).")] = None,
    columns: ColumnsOption = None,
    max_tokens: TokensOption = 128,
    signal: SignalOption = None,
    backend: BackendOption = "auto",
    time: Annotated[str | None, typer.Option("--time", help="How long it may take: 90s, 10m, 1h.")] = None,
    json: JsonOption = False,
) -> None:
    """Find a policy: the best artifact within the budgets, and the Pareto front."""
    began = monotonic()  # what follows is seconds of imports
    from tersor.jobs import Search, deadline_of
    from tersor.render import print_lines
    from tersor.searching import budgets
    from tersor.summary import summary

    asked = budgets(size, latency, memory, minimize)
    deadline = deadline_of(time, began)
    with progress() as shown:
        found = Search.read(model, policy, asked, data, columns, max_tokens, signal, out).run(
            out, backend, deadline, shown, typed()
        )
    if not json:
        print_lines(summary(found, out))
    if found.missed is not None:
        raise found.missed
    if json:
        print_json({"out": str(out), **found.report.to_json()})


@app.command()
def bench(
    folder: FolderArgument,
    against: Annotated[str | None, typer.Option("--against", metavar="MODEL", help="The original.")] = None,
    data: DataOption = None,
    columns: ColumnsOption = None,
    max_tokens: TokensOption = 128,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples per call.")] = 1,
    tokens: Annotated[str, typer.Option("--tokens", help="Lengths, separated by commas.")] = "16,128",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    backend: BackendOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measured bytes, milliseconds and fidelity, side by side in one run."""
    from tersor import jobs, render
    from tersor.bench import bench as measure

    found = measure(
        folder, against, data, columns=jobs.names(columns), max_tokens=max_tokens, batch=batch,
        tokens=jobs.lengths(tokens), threads=threads, backend=jobs.backend_named(backend),
    )  # fmt: skip
    if json:
        print_json(found.to_json())
    else:
        render.print_bench(found)


@app.command()
def show(
    folder: FolderArgument,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the report page of a search anew.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """What an artifact holds, site by site."""
    from tersor import render
    from tersor.show import show as read
    from tersor.show import write_page

    found = read(folder)
    if page is not None:
        write_page(folder, page)
    if json:
        print_json(found.to_json())
    else:
        render.print_shown(found)


def typed() -> str:
    """The command as it was typed, ready for a shell."""
    return shlex.join([app.info.name or "", *sys.argv[1:]])


def main() -> None:
    """The entry point; always ends with SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(guarded(app, "--json" in sys.argv))
