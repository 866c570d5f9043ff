"""Masked tokens for an encoder to predict: a fixed share of every window.

Source: J. Devlin et al., BERT, NAACL 2019, for 80 % masked, 10 % random, 10 % left; the fixed counts per window and the
share of a quarter are those of J. Geiping and T. Goldstein, Cramming, ICML 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._checks import check_number

SHARE = 0.25
MASKED, RANDOM = 0.8, 0.1
Example = tuple[Tensor, Tensor, Tensor]


class MaskedWindows(Dataset[Example]):
    """Triples of tokens with some of them masked, ``(N,)``, and positions and tokens to predict, ``(K,)`` each.

    `K = round(share * N)` positions are drawn without repetition, of any tokens, special ones included. Of these
    `round(0.8 K)` become the mask, `round(0.1 K)` a random token, and the others stay.

    Args:
        windows: tokens, ``(N,)`` each, or tuples that begin with them.
        mask: the token that replaces others.
        vocab_size: how many tokens there are.
        share: of the tokens that are to be predicted.
        seed: for the same masks every time, as in an evaluation; None draws from torch's global generator.
    """

    def __init__(
        self,
        windows: Dataset[Tensor] | Dataset[tuple[Tensor, Tensor]],
        *,
        mask: int,
        vocab_size: int,
        share: float = SHARE,
        seed: int | None = None,
    ) -> None:
        check_number("share", share, above=0.0, below=1.0)
        self._windows = windows
        self._mask = mask
        self._vocab_size = vocab_size
        self._share = share
        self._seed = seed

    def __len__(self) -> int:
        return len(self._windows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Example:
        window = self._windows[index]
        tokens = window if isinstance(window, Tensor) else window[0]
        generator = None
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed * 2**32 + index)
        count = max(1, round(self._share * len(tokens)))
        positions = torch.randperm(len(tokens), generator=generator)[:count]
        hidden = tokens.clone()
        masked, drawn = round(MASKED * count), round(RANDOM * count)
        hidden[positions[:masked]] = self._mask
        random = torch.randint(self._vocab_size, (drawn,), generator=generator)
        hidden[positions[masked : masked + drawn]] = random
        return hidden, positions, tokens[positions]
