"""A decoder that was trained to copy is found to copy, by its answers and by its heads: half a minute of training."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from skerry.redesign.battery import compare, run_battery

VOCAB, SPECIAL = 64, 3


def trained_to_copy(steps=600):
    """Two layers, 64 wide, on random sequences of 8 to 32 tokens and their repetition; the loss is on the repetition alone."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )
    untrained = {name: p.clone() for name, p in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        length = int(torch.randint(8, 33, (), generator=generator))
        once = torch.stack([torch.randperm(VOCAB - SPECIAL, generator=generator)[:length] for _ in range(32)])
        ids = torch.cat([once, once], dim=1) + SPECIAL
        labels = ids.clone()
        labels[:, : length + 1] = -100
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model, untrained


@pytest.mark.slow
def test_a_decoder_trained_to_copy_does_and_an_untrained_one_is_at_chance():
    model, untrained = trained_to_copy()
    options = {"inputs": 16, "tasks": ["induction", "retrieval", "labels"]}
    after = run_battery(model, **options)
    model.load_state_dict(untrained)
    before = run_battery(model, **options)
    assert after.score("induction", "accuracy").value > 0.9
    assert after.score("induction", "prefix_matching").value > 0.3
    assert after.tables["best_head"][0]["layer"] == 1
    # It was never trained on questions or labels: what it does there it does by copying.
    assert after.score("retrieval", "accuracy").interval.low > 0.3
    assert after.score("labels", "gain").standing == "better"
    for key in (("induction", "gain"), ("retrieval", "accuracy"), ("labels", "accuracy")):
        assert before.score(*key).standing == "at", key
    told = {(d.task, d.measure): d.verdict for d in compare(before, after)}
    assert (
        told["induction", "accuracy"]
        == told["retrieval", "accuracy"]
        == told["labels", "accuracy"]
        == "better"
    )
