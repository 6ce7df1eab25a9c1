"""The policy language: text to `Policy`, `Policy` to text, and the canonical layout of a text.

>>> from tersor.dsl import parse_policy, write_policy
>>> write_policy(parse_policy("budget size <= 12 MB", {}))
'budget size <= 12 MB\\nminimize damage\\n'
"""

from __future__ import annotations

from tersor.dsl.codes import CODES
from tersor.dsl.format import format_policy
from tersor.dsl.read import parse_policy, read_policy, read_text
from tersor.dsl.write import write_policy

__all__ = ["CODES", "format_policy", "parse_policy", "read_policy", "read_text", "write_policy"]
