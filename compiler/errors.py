"""The families of failure and the exit code each one has on the command line."""

from __future__ import annotations


class TersorError(Exception):
    """A problem the user can act on: the message names the place and the remedy, no traceback is shown."""

    exit_code = 2


class RequestError(TersorError):
    """The request is wrong: a policy, an argument, a data file or an artifact that cannot be used."""

    exit_code = 2


class CaptureError(TersorError):
    """The model cannot be captured as a graph; the message says why and what to try."""

    exit_code = 4


class ArtifactError(RequestError):
    """An artifact is truncated, tampered with, or written in a format this version does not read."""


class CompilerBug(Exception):
    """A broken promise of ours. Never caused by input; always asks for a report."""

    exit_code = 1
