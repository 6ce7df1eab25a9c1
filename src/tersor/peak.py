"""The memory an artifact needs, measured in a process of its own.

What is counted is the peak of the resident memory from loading the artifact to the end of a call, beyond what the
interpreter and the libraries take before that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from tersor.backend import BackendName
from tersor.compiler.errors import RequestError

INPUTS = "inputs.safetensors"
SECONDS = 300


def peak_memory(folder: Path, inputs: Mapping[str, Tensor], threads: int, backend: BackendName) -> int:
    """Bytes, for the artifact in a folder that may be written to. Raises RequestError where no such process can run,
    or this system does not tell its memory."""
    if sys.platform != "linux":
        raise RequestError("a budget on memory needs Linux: other systems do not tell the peak of a process")
    try:
        given = {name: value.contiguous() for name, value in inputs.items()}
        (folder / INPUTS).write_bytes(safetensors.torch.save(given))
        command = [sys.executable, "-m", "tersor.peak", str(folder), str(threads), backend]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise RequestError(f"the memory of the artifact cannot be measured: {problem}") from None
    if ran.returncode:
        why = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        raise RequestError(f"the memory of the artifact cannot be measured: {why[0]}")
    return int(ran.stdout)


def resident(what: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}")


def main() -> None:
    """`python -m tersor.peak FOLDER THREADS BACKEND`: load, call, print the bytes."""
    folder, threads, backend = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    import torch

    from tersor.loading import load

    if backend != "eager":
        import tersor.backends.numba.backend  # noqa: F401 - a library like torch: its own memory is not the model's
    torch.set_num_threads(threads)
    inputs = safetensors.torch.load((folder / INPUTS).read_bytes())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = resident("VmRSS")
    module = load(folder, backend)  # type: ignore[arg-type]
    with torch.no_grad():
        module(**inputs)
    sys.stdout.write(str(max(0, resident("VmHWM") - before)))


if __name__ == "__main__":
    main()
