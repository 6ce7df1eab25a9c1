"""Numba code that runs a table of steps, and the threads that help.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.

A step is four integers: kernel, operands, units, chunk. A kernel is called as kernel(operands, first, last, work). A
step of more than one chunk is offered to the helpers. Every thread, the caller too, has a range of chunks of its own,
which it claims one after the other, so that it knows what it will read next; then it claims what others have left. The
caller in the end waits only for chunks that were claimed; a helper that never gets a CPU costs nothing.

In the control block GENERATION counts offers. The ticket of a thread is the generation, the end of its range and its
next chunk in one number: what was claimed from an older offer, or from a range that is done, changes nothing.
"""

from __future__ import annotations

from numba import cfunc, njit, types

from tersor.backends.numba.driverspec import (
    ALLOWED,
    CHUNK,
    CHUNK_BITS,
    DONE,
    GENERATION,
    KERNEL,
    MOST_CHUNKS,
    OPERANDS,
    SLEEPERS,
    STOP,
    TICKETS,
    UNITS,
    WORK,
    WORK_SIZE,
    DriverSpec,
)
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import (
    make_atomic_add,
    make_atomic_load,
    make_atomic_set,
    make_call,
    make_compare_and_set,
    make_futex,
    make_load,
    make_pause,
    provide_syscall,
)

SPEC = DriverSpec("generic")

LEVEL = level_named(SPEC.level)
provide_syscall()
load = make_load(LEVEL)
call = make_call(LEVEL)
pause = make_pause(LEVEL)
futex = make_futex(LEVEL)
atomic_load = make_atomic_load(LEVEL)
atomic_add = make_atomic_add(LEVEL)
atomic_set = make_atomic_set(LEVEL)
compare_and_set = make_compare_and_set(LEVEL)

WAIT, WAKE = 128, 129  # futex operations on memory of this process alone
EVERYBODY = 1 << 30


@njit(types.void(types.int64, types.int64, types.int64), error_model="numpy", cache=True)
def drain(control, generation, place):  # type: ignore[no-untyped-def]  # addresses and counts
    """Claim and run chunks of an offer until none is left, as worker `place`, its own first."""
    allowed = atomic_load(control + ALLOWED)
    done = 0
    for turn in range(allowed):
        mine = control + TICKETS + 64 * ((place + turn) % allowed)
        while True:
            ticket = atomic_load(mine)
            chunk, end = ticket & MOST_CHUNKS, ticket >> CHUNK_BITS & MOST_CHUNKS
            if ticket >> 2 * CHUNK_BITS != generation or chunk >= end:
                break
            size = atomic_load(control + CHUNK)
            units = atomic_load(control + UNITS)
            kernel = atomic_load(control + KERNEL)
            operands = atomic_load(control + OPERANDS)
            work = atomic_load(control + WORK) + place * atomic_load(control + WORK_SIZE)
            if compare_and_set(mine, ticket, ticket + 1):
                first = chunk * size
                call(kernel, operands, first, min(first + size, units), work)
                done += 1
    if done > 0:
        atomic_add(control + DONE, done)


@cfunc("void(int64, int64, int64)", error_model="numpy", cache=True)
def help_out(control, place, patience):  # type: ignore[no-untyped-def]
    """A helper's life: look for offers, for `patience` rounds awake, then asleep, until told to stop."""
    seen = atomic_load(control + GENERATION)
    while True:
        rounds = 0
        while atomic_load(control + GENERATION) == seen:
            pause()
            rounds += 1
            if rounds > patience:
                atomic_add(control + SLEEPERS, 1)
                futex(control + GENERATION, WAIT, seen)
                atomic_add(control + SLEEPERS, -1)
                rounds = 0
        seen = atomic_load(control + GENERATION)
        if atomic_load(control + STOP):
            return
        if place < atomic_load(control + ALLOWED):
            drain(control, seen, place)


@njit(types.void(*[types.int64] * 5), error_model="numpy", cache=True)
def offer(control, kernel, operands, units, chunk):  # type: ignore[no-untyped-def]
    """Run a step together with the helpers."""
    generation = atomic_load(control + GENERATION) + 1
    allowed = atomic_load(control + ALLOWED)
    chunk = max(chunk, (units + MOST_CHUNKS - 1) // MOST_CHUNKS)
    chunks = (units + chunk - 1) // chunk
    # Nobody can claim while these change: the ranges of the last offer are done.
    atomic_set(control + KERNEL, kernel)
    atomic_set(control + OPERANDS, operands)
    atomic_set(control + UNITS, units)
    atomic_set(control + CHUNK, chunk)
    atomic_set(control + DONE, 0)
    for place in range(allowed):
        first, end = place * chunks // allowed, (place + 1) * chunks // allowed
        atomic_set(control + TICKETS + 64 * place, (generation << CHUNK_BITS | end) << CHUNK_BITS | first)
    atomic_set(control + GENERATION, generation)
    if atomic_load(control + SLEEPERS) > 0:
        futex(control + GENERATION, WAKE, EVERYBODY)
    drain(control, generation, 0)
    while atomic_load(control + DONE) < chunks:
        pause()


@cfunc("void(int64, int64, int64, int64)", error_model="numpy", cache=True)
def run(steps, count, work, control):  # type: ignore[no-untyped-def]
    """Run `count` steps in order; `control` is the helpers' control block, 0 to do without them."""
    for s in range(count):
        step = steps + 32 * s
        kernel, operands, units, chunk = load(step), load(step + 8), load(step + 16), load(step + 24)
        if control == 0 or units <= chunk:
            call(kernel, operands, 0, units, work)
        else:
            offer(control, kernel, operands, units, chunk)
