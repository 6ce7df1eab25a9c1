"""Native objects of compiled functions: kept on disk, and loaded by a process without the compiler that made them.

A file is one line, `name of the function, hash of its source, hash of the object`, then the object. LLVM links it into
the process. Numba and its parts take a second to import, which a process whose objects are all there is spared.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite import binding

# What Numba's code calls where it raises. Kernels never do: they are integer arithmetic on addresses, without checks.
_RAISING = (
    "NRT_Free", "NRT_Allocate", "numba_do_raise", "numba_gil_ensure", "numba_gil_release", "numba_unpickle",
    "numba_runtime_build_excinfo_struct",
)  # fmt: skip
_abort = ctypes.CFUNCTYPE(None)(os.abort)
_engines: list[Any] = []
"""They own the code that was loaded."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def keep(path: Path, function: str, source: str, code: bytes) -> None:
    """Write an object, in one step."""
    head = f"{function} {digest(source.encode())} {digest(code)}\n".encode()
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(head + code)
    os.replace(file.name, path)


def find(path: Path, source: str) -> tuple[str, bytes] | None:
    """The function's name and its object, if what lies there is whole and of this source."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        function, of_source, of_code = head.decode().split(" ")
    except (OSError, ValueError):
        return None
    return (function, code) if (of_source, of_code) == (digest(source.encode()), digest(code)) else None


def processor() -> str:
    """What compiled code depends on besides its source: the processor, and what Numba is told to take for it."""
    told = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    return " ".join([binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), *told])


@cache
def _prepare() -> None:
    """What is to be done once before an object is linked."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    address = ctypes.cast(_abort, ctypes.c_void_p).value
    for name in _RAISING:
        if binding.address_of_symbol(name) is None:
            binding.add_symbol(name, address)


def link(function: str, code: bytes) -> int:
    """The address of a function of an object, now in this process."""
    _prepare()
    machine = binding.Target.from_default_triple().create_target_machine(opt=3, jit=True, codemodel="jitdefault")
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(function))
