"""Models whose answers are known: written by hand, without weights, each from the token ids alone."""

from types import SimpleNamespace

import torch
from torch import nn


class Known(nn.Module):
    """Logits from the ids by `rule(ids) -> [sample position token]`; no cache, no head, no configuration."""

    def __init__(self, rule, vocab=200):
        super().__init__()
        self.rule, self.vocab, self.calls = rule, vocab, []

    def forward(self, input_ids, use_cache=False, **others):
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.rule(input_ids, self.vocab), past_key_values=None)


def even(ids, vocab):
    return torch.zeros(*ids.shape, vocab)


def copying(ids, vocab):
    """What followed the latest earlier place of this token; even where there was none."""
    logits = torch.zeros(*ids.shape, vocab)
    same = (ids[:, :, None] == ids[:, None, :]).tril(-1)
    for sample, row in enumerate(same):
        for i in range(ids.shape[1]):
            earlier = row[i].nonzero()[:, 0]
            if len(earlier):
                logits[sample, i, ids[sample, earlier[-1] + 1]] = 50.0
    return logits


def round_three(ids, vocab):
    """7 -> 8 -> 9 -> 7 -> ...; from anywhere else to 7."""
    after = torch.full((vocab,), 7)
    after[7], after[8], after[9] = 8, 9, 7
    return 80.0 * nn.functional.one_hot(after[ids], vocab).float()


def counting(ids, vocab):
    """Every token is followed by the next number."""
    return 80.0 * nn.functional.one_hot((ids + 1) % vocab, vocab).float()


def bigram(sharpness=1.0, seed=0):
    """Each token has a distribution of its own for the next one."""

    def rule(ids, vocab):
        table = 2.0 * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))
        return sharpness * table[ids]

    return rule


def looking_ahead(ids, vocab):
    """No decoder: the logits hold the token that comes."""
    return nn.functional.one_hot(ids.roll(-1, dims=1), vocab).float()


def broken(ids, vocab):
    return torch.full((*ids.shape, vocab), torch.nan)


def text_of(rule, vocab=200, samples=40, length=128, seed=0):
    """Token ids that the rule itself wrote, a first token drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (samples, 1), generator=generator)
    while ids.shape[1] < length:
        p = rule(ids[:, -1:], vocab)[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    return ids
