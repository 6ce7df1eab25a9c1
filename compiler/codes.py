"""Every code of a problem between a policy and a model, and what it means. Codes never change their meaning; E0xx and
E1xx, about the text itself, are listed by the language."""

from __future__ import annotations

CODES: dict[str, str] = {
    # against the model
    "E201": "a rule that names nothing in the model",
    "E202": "a rule that later rules override everywhere",
    "E203": "a method that is refused wherever the rule decides",
    "E204": "a method that needs calibration data where there is none",
    # against the budget
    "E301": "a budget that cannot be met",
    "E303": "a recovery that this version cannot carry out",
    "E304": "a budget on inputs that the model does not take",
}
