"""What the examples learn from: the chapters of Python's manual that `help()` shows.

They come with Python, so nothing is downloaded. A character is its ASCII code. Which part of the
text a rank reads in a step follows from step, rank and number of ranks alone, so it is right also
for a run whose ranks come and go.
"""

from pydoc_data.topics import topics

import torch

CHARACTERS = 128
_TEXT = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
_CODES = torch.frombuffer(bytearray(_TEXT), dtype=torch.uint8).long()


def batch(
    step: int, rank: int, size: int, windows: int = 24, length: int = 48
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's share of the step's windows, and what follows each of their characters."""
    random = torch.Generator().manual_seed(step)
    starts = torch.randint(len(_CODES) - length, (windows,), generator=random)
    rows = torch.stack([_CODES[start : start + length + 1] for start in starts[rank::size]])
    return rows[:, :-1], rows[:, 1:]
