"""What a text trunk that does not move says of captions: asked once a trial, not at each question to each copy.

Not for the daemon: the last bits of an answer are those of the batch that a caption was first in, which a resumed run
would not have again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamlearn.encoders import Towers
from streamlearn.encoders_pretrained import HuggingFaceText


class Remembered:
    """Stands for `HuggingFaceText.features` in a tower and all its copies.

    Args:
        text: a tower whose trunk is fixed.
    """

    def __init__(self, text: HuggingFaceText) -> None:
        text.trunk.eval()
        self._features = text.features
        self._known: dict[bytes, Tensor] = {}

    def __deepcopy__(self, _: Any) -> Remembered:
        return self

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Shape: (n, tokens) twice -> (n, hidden)."""
        texts = zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)
        keys = [ids[mask].numpy().tobytes() for ids, mask in texts]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            rows = list(new.values())
            self._known |= zip(new, self._features(input_ids[rows], attention_mask[rows]).float(), strict=True)
        return torch.stack([self._known[key] for key in keys])


def remember_captions(towers: Towers) -> None:
    """Have the text tower and every later copy remember, where its trunk is a fixed one of Hugging Face."""
    text = towers.text
    weights = [name for name, _ in towers.named_parameters() if name.startswith("text.trunk.")]
    if isinstance(text, HuggingFaceText) and towers.fixed.issuperset(weights):
        text.features = Remembered(text)  # type: ignore[method-assign]
