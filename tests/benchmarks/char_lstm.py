"""A character LSTM at 1/4, 1/6 and 1/8 of its size: bits per character of held-out text, before and after.

    python -m tests.benchmarks.char_lstm [--json PATH] [--choices]

An embedding, an LSTM of 256 and a linear layer (1.48 MB) are trained on the first 85 % of WikiText-2's validation text,
which takes minutes the first time; the weights are kept under ~/.cache/tersor (or TERSOR_CACHE_DIR). They are compiled
with passages of that part only, saved, loaded from disk, and judged on the last 15 %.
"""

from __future__ import annotations

from tests.benchmarks.char_model import Text, bits_per_character, passages, shared_data, trained
from tests.benchmarks.recurrent import arguments, compiled, show


def main() -> None:
    given = arguments(__doc__)
    text = Text.read(shared_data() / "wikitext2" / "valid.txt")
    model = trained(text)
    data = passages(model, text.train, streams=8, span=128, count=14)
    outcomes = compiled(model, data, lambda loaded: bits_per_character(loaded, text.held_out))
    show("bits/character", outcomes, given, {"characters": len(text.held_out)})


if __name__ == "__main__":
    main()
