"""The operands of a recurrence, which `glue_recurrence` reads in this order as 64-bit integers.

First HEADER, then for each direction what DIRECTION names, then the tables of inner steps: the steps that multiply a
block's state h with W_hh, for a full block and for the rows that are left. A table is TABLE, then for every step its
kernel, its units, the number of its operands, and for each of those two integers: whether it is relative to the
thread's own memory, and its value.
"""

from __future__ import annotations

HEADER = ("batch", "length", "hidden", "block", "inner", "state", "memory", "tail", "image")
"""`block` batch rows go through time together. The others are offsets in the thread's scratch: the memory of the inner
steps, which have the bytes before it as their scratch; the states h and c of a block, rows padded to vectors; room for
the last, partial vector of every gate; the inner steps with their operands."""

DIRECTION = (
    "full", "rest", "u", "u_time", "u_row", "y", "y_time", "y_row", "h_first", "c_first", "h_last", "c_last",
    "backward",
)  # fmt: skip
"""Where the tables begin, counted in integers; u = W_ih x + b_ih and y with the bytes from one time and one batch row
to the next; first and last states (batch, hidden), c for an LSTM only; 1 if time runs backward."""

TABLE = ("steps", "h", "z")
"""Number of steps, and where, in the memory of the inner steps, they read h and leave z = W_hh h + b_hh."""
