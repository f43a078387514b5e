"""Bigram-Backcopy (Guo et al. 2024, arXiv 2410.13835, section 2): a task in which one head must sometimes look back and sometimes do nothing.

    x_0 = <s>,   x_1 ~ start,   x_{i+1} = x_{i-1} if x_i is a trigger, else x_{i+1} ~ P(x_i, .)

Tokens are the characters of a text, numbered from 1 by falling frequency; P is its table of neighbours, and the triggers are its three most
frequent characters. On a trigger attention has to copy; elsewhere the token alone says all there is to know, and a head whose weights must sum to
one needs a place to put them: <s> becomes a sink.

The first character is no trigger (our choice: <s> is never copied). Then the character before a trigger is none either, and the best loss has a
closed form, `Backcopy.bayes_loss`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skerry.corpus import builtin
from skerry.errors import BadText, UnknownOption

START = 0


class BayesLoss(NamedTuple):
    """Mean loss of whoever knows the task, nats per predicted token.

    Attributes:
        backcopy: After a trigger: the next token is known.
        bigram: After every other token, <s> among them.
        mean: Over all predictions of a sequence.
        trigger_share: Share of the predictions that follow a trigger, 0 to 1.
    """

    backcopy: float
    bigram: float
    mean: float
    trigger_share: float


@dataclass(frozen=True, eq=False)
class Backcopy:
    """The task for one text.

    Attributes:
        characters: What token i + 1 stands for.
        start: Law of the first character; row `START` of `bigram`.
        bigram: P, rows sum to one; those of triggers are never used.
        num_triggers: Tokens 1 to this one are triggers.
    """

    characters: tuple[str, ...]
    bigram: Float[Tensor, "token token"]
    num_triggers: int

    @property
    def vocab_size(self) -> int:
        """Characters and <s>."""
        return len(self.characters) + 1

    def is_trigger(self, ids: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Which tokens are triggers."""
        return (ids > START) & (ids <= self.num_triggers)

    def batch(self, seed: int, step: int, *, samples: int, length: int) -> Int[Tensor, "sample position"]:
        """The sequences of one step, the same for the same seed and step.

        Raises:
            UnknownOption: Less than one sequence, less than three tokens, or a negative seed or step.
        """
        if samples < 1 or length < 3 or seed < 0 or step < 0:
            raise UnknownOption(
                f"samples {samples}, length {length}, seed {seed}, step {step}: there must be a sequence, three tokens, and no negative number"
            )
        draws = np.random.default_rng((seed, step)).random((length, samples))
        cumulative = self.bigram.numpy().cumsum(axis=1)
        cumulative /= cumulative[:, -1:]
        ids = np.full((length, samples), START)
        for i in range(1, length):
            current = ids[i - 1]
            drawn = (draws[i][:, None] >= cumulative[current]).sum(axis=1)
            copies = (current > START) & (current <= self.num_triggers)
            ids[i] = np.where(copies, ids[i - 2], drawn) if i > 1 else drawn
        return torch.from_numpy(np.ascontiguousarray(ids.T))

    def law(self, ids: Int[Tensor, "sample position"]) -> Float[Tensor, "sample position token"]:
        """True law of the token after each place, given all tokens up to it."""
        law = self.bigram[ids]
        before = ids.roll(1, dims=1)
        copied = torch.nn.functional.one_hot(before, self.vocab_size).to(law)
        return torch.where(self.is_trigger(ids)[..., None], copied, law)

    def bayes_loss(self, length: int) -> BayesLoss:
        """The best possible loss over sequences of `length` tokens, exactly: expected entropies over expected counts.

        With a_i(x) = P(x_i = x, no trigger): a_{i+1}(y) = sum_x a_i(x) P(x, y) + a_{i-1}(y) sum_t P(y, t), the second sum over triggers.
        """
        entropy = torch.special.entr(self.bigram).sum(1)
        triggers = self.is_trigger(torch.arange(self.vocab_size))
        onward = self.bigram.masked_fill(triggers, 0.0)
        to_trigger = self.bigram[:, triggers].sum(1)
        plain = torch.zeros(self.vocab_size, dtype=torch.float64)
        plain[START] = 1.0
        before = torch.zeros_like(plain)
        loss = count = 0.0
        for _ in range(length - 1):
            loss += float(plain @ entropy)
            count += float(plain.sum())
            plain, before = plain @ onward + before * to_trigger, plain
        return BayesLoss(
            backcopy=0.0,
            bigram=loss / count,
            mean=loss / (length - 1),
            trigger_share=1 - count / (length - 1),
        )


def make_task(text: str, *, num_characters: int = 64, num_triggers: int = 3) -> Backcopy:
    """The task of a text: its `num_characters` most frequent characters; pairs with any other are not counted.

    Raises:
        BadText: Fewer characters than triggers need, or a character that none of the kept ones follows.
    """
    frequent = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))[:num_characters]
    number = {character: i for i, (character, _) in enumerate(frequent, 1)}
    size = len(frequent) + 1
    if num_triggers < 1 or size - 1 < num_triggers + 2:
        raise BadText(
            f"the text has {size - 1} different characters and the task {num_triggers} triggers; it needs at least one trigger and two characters more"
        )
    ids = np.array([number.get(character, START) for character in text])
    pairs = np.bincount(ids[:-1] * size + ids[1:], minlength=size * size).reshape(size, size).astype(float)
    pairs[:, START] = 0.0
    pairs[START] = np.bincount(ids, minlength=size)
    pairs[START, : num_triggers + 1] = 0.0
    totals = pairs.sum(axis=1)
    if not totals.all():
        lonely = frequent[int(np.flatnonzero(totals == 0)[0]) - 1][0]
        raise BadText(
            f"nothing follows the character {lonely!r} in the text; give a longer text or fewer characters"
        )
    characters = tuple(character for character, _ in frequent)
    return Backcopy(characters, torch.from_numpy(pairs / totals[:, None]), num_triggers)


@cache
def builtin_task() -> Backcopy:
    """The task of the built-in corpus: 64 characters and <s>."""
    return make_task("\n\n".join(builtin().documents))


def batches(
    seed: int, step: int, *, samples: int = 64, length: int = 128, task: Backcopy | None = None
) -> Int[Tensor, "sample position"]:
    """Training data for one step, as a trainer reads it; of the built-in corpus unless a task is given.

    Raises:
        UnknownOption: Sizes or seeds that cannot be meant.
    """
    return (task or builtin_task()).batch(seed, step, samples=samples, length=length)
