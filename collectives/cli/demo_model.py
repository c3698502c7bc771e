"""What the demo trains: a small model that guesses the next character of a text, in numpy alone.

Everything here is a pure function of its arguments, down to the bits, because the demo compares
the peers' weights with those of one process that does all of the work again: batches are drawn
from (seed, step, rank, size), and every sum has a fixed order. That includes the matrix products,
as long as BLAS is used with one thread and the same shapes.

The model is an MLP over the embeddings of the last CONTEXT characters; its weights, and the two
moments of Adam, are one float32 array, so that one broadcast hands a joiner all there is.
"""

from __future__ import annotations

import hashlib
import math
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt

CONTEXT = 8  # characters that the model sees
EMBEDDED = 16  # numbers per character
HIDDEN = 256
BATCH = 64  # characters that each member learns from in one step
RATE = 2e-3
BETAS = (0.9, 0.99)
EPSILON = 1e-8

Floats = npt.NDArray[Any]  # float32 in the demo; the test of the gradient uses float64
Tokens = npt.NDArray[np.intp]


class Text:
    """The documentation topics that come with Python, as numbers; the last 5 % are held out."""

    def __init__(self) -> None:
        text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        alphabet, numbers = np.unique(points, return_inverse=True)
        self.vocabulary = len(alphabet)
        cut = len(numbers) * 95 // 100
        self.train: Tokens = numbers[:cut].astype(np.intp)
        self.held_out: Tokens = numbers[cut:].astype(np.intp)

    def batch(self, seed: int, step: int, rank: int, size: int) -> tuple[Tokens, Tokens]:
        """Contexts and the characters that follow, from the rank's part of the text."""
        first = len(self.train) * rank // size
        last = len(self.train) * (rank + 1) // size - CONTEXT
        random = np.random.default_rng([seed, step, rank, size])
        return windows(self.train, random.integers(first, last, BATCH))

    def test(self, count: int = 2048) -> tuple[Tokens, Tokens]:
        return windows(self.held_out, np.linspace(0, len(self.held_out) - CONTEXT - 1, count))


def windows(tokens: Tokens, starts: npt.NDArray[Any]) -> tuple[Tokens, Tokens]:
    starts = starts.astype(np.intp)
    return tokens[starts[:, None] + np.arange(CONTEXT)], tokens[starts + CONTEXT]


class Model:
    """Shapes, and the loss with its gradient. Holds no weights: they are passed in, flat."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.shapes = (
            (vocabulary, EMBEDDED),
            (CONTEXT * EMBEDDED, HIDDEN),
            (HIDDEN,),
            (HIDDEN, vocabulary),
            (vocabulary,),
        )
        self.count = sum(math.prod(shape) for shape in self.shapes)

    def views(self, flat: Floats) -> list[Floats]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        return [
            part.reshape(shape)
            for part, shape in zip(np.split(flat, ends[:-1]), self.shapes, strict=True)
        ]

    def initial(self, seed: int) -> Floats:
        """Weights and Adam's moments: float32, shape (3, count)."""
        state = np.zeros((3, self.count), np.float32)
        random = np.random.default_rng(seed)
        for weights in self.views(state[0]):
            if weights.ndim == 2:
                scale = np.float32(1 / math.sqrt(weights.shape[0]))
                weights[:] = random.standard_normal(weights.shape, np.float32) * scale
        return state

    def loss(
        self, flat: Floats, contexts: Tokens, targets: Tokens, gradient: Floats | None = None
    ) -> float:
        """The mean cross entropy in nats. Writes its gradient, if an array for it is given."""
        embedding, weights1, bias1, weights2, bias2 = self.views(flat)
        rows = np.arange(len(targets))
        seen = embedding[contexts].reshape(len(targets), -1)
        hidden = np.maximum(seen @ weights1 + bias1, 0)
        scores = hidden @ weights2 + bias2
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[rows, targets]
        shares = np.exp(scores)
        totals = shares.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0]) - chosen).mean())
        if gradient is None:
            return loss
        to_embedding, to_weights1, to_bias1, to_weights2, to_bias2 = self.views(gradient)
        shares /= totals
        shares[rows, targets] -= 1
        shares /= len(targets)
        to_weights2[:] = hidden.T @ shares
        to_bias2[:] = shares.sum(axis=0)
        back = (shares @ weights2.T) * (hidden > 0)
        to_weights1[:] = seen.T @ back
        to_bias1[:] = back.sum(axis=0)
        # As a product with ones and zeros: a scattered sum is slower.
        which = np.zeros((contexts.size, self.vocabulary), flat.dtype)
        which[np.arange(contexts.size), contexts.ravel()] = 1
        to_embedding[:] = which.T @ (back @ weights1.T).reshape(-1, EMBEDDED)
        return loss


def update(state: Floats, gradient: Floats, step: int) -> None:
    """One step of Adam; steps count from 0."""
    weights, mean, square = state
    mean *= np.float32(BETAS[0])
    mean += np.float32(1 - BETAS[0]) * gradient
    square *= np.float32(BETAS[1])
    square += np.float32(1 - BETAS[1]) * gradient * gradient
    rate = np.float32(RATE / (1 - BETAS[0] ** (step + 1)))
    unbias = np.float32(1 / (1 - BETAS[1] ** (step + 1)))
    weights -= rate * mean / (np.sqrt(square * unbias) + np.float32(EPSILON))


def digest(state: Floats) -> str:
    return hashlib.blake2b(state.tobytes(), digest_size=16).hexdigest()


def mean_by_left_fold(gradients: list[Floats]) -> Floats:
    """What all_reduce(op="avg", algorithm="direct") computes: ((g0 + g1) + g2) + ..., divided by
    their number at the end, all in float32."""
    total: Floats = gradients[0].copy()
    for gradient in gradients[1:]:
        total += gradient
    total /= np.float32(len(gradients))
    return total
