import torch

from skerry.corpus.batch import Batch
from skerry.measure.places import places


def batch_of(keep):
    keep = torch.tensor(keep, dtype=torch.bool)
    return Batch(torch.arange(keep.numel()).reshape(keep.shape) + 100, keep, torch.arange(len(keep)) + 7)


def test_positions_count_kept_places():
    at = places(batch_of([[0, 0, 1, 1], [1, 1, 1, 0]]))
    assert at.position.tolist() == [0, 1, 0, 1, 2]
    assert at.row.tolist() == [2, 3, 4, 5, 6]
    assert at.token_id.tolist() == [102, 103, 104, 105, 106]
    assert at.sample[at.which].tolist() == [7, 7, 8, 8, 8]
    assert not at.is_left_aligned


def test_an_input_without_rows_is_left_out():
    at = places(batch_of([[1, 1], [0, 0], [1, 0]]))
    assert at.sample.tolist() == [7, 9] and at.start.tolist() == [0, 2, 3]
    assert at.common_length is None and at.is_left_aligned


def test_rows_of_an_expert_are_a_subset():
    batch = batch_of([[1, 1, 1], [1, 1, 0]])
    at = places(batch, torch.tensor([1, 2, 5]))
    assert at.row.tolist() == [0, 1]  # flat token 5 is padding
    assert at.sample.tolist() == [7] and at.position.tolist() == [1, 2] and at.token_id.tolist() == [101, 102]


def test_tokens_are_grouped_by_id():
    batch = Batch(torch.tensor([[5, 5, 9], [9, 5, 5]]), torch.ones(2, 3, dtype=torch.bool), torch.arange(2))
    index = places(batch).tokens
    assert (
        index.ids.tolist() == [5, 9]
        and index.count.tolist() == [4, 2]
        and index.num_samples.tolist() == [2, 2]
    )


def test_the_layout_of_a_batch_is_made_once():
    batch = batch_of([[1, 1]])
    assert places(batch) is places(batch)
    assert places(batch_of([[1, 1]])) is not places(batch)
