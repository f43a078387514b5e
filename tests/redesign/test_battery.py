"""The functional battery on models whose answers are known."""

import json
import math

import numpy as np
import pytest
import torch
import zoo

from skerry.anatomy import Site, capture, resolve
from skerry.errors import BadTokens, BrokenModel, NotPossible, UnknownOption
from skerry.redesign.battery import TASKS, Battery, check_tasks, compare, run_battery
from skerry.redesign.battery.induction import prefix_matching, repeated
from skerry.redesign.battery.linear import examples, least_squares
from skerry.redesign.battery.material import make_material
from skerry.redesign.battery.retrieval import questions
from skerry.redesign.battery.subject import subject_of

from .battery_models import (
    Known,
    bigram,
    broken,
    copying,
    counting,
    even,
    looking_ahead,
    round_three,
    text_of,
)

FEW = {"inputs": 6, "training_length": 64}
IN_CONTEXT = ("induction", "retrieval", "labels", "linear")


def of(rule, **options):
    vocab = options.pop("vocab", 200)
    return run_battery(Known(rule, vocab), **{**FEW, "training_length": 128, **options})


@pytest.fixture(scope="module")
def copier():
    return of(copying, tasks=IN_CONTEXT)


@pytest.fixture(scope="module")
def knows_nothing():
    return of(even, text=text_of(bigram()))


def test_a_model_that_copies_repeats_a_random_sequence_without_a_mistake(copier):
    accuracy = copier.score("induction", "accuracy")
    assert accuracy.value == 1.0 and accuracy.standing == "better"
    assert copier.score("induction", "loss").value == pytest.approx(0.0, abs=1e-6)
    assert copier.score("induction", "gain").value == pytest.approx(math.log(200), rel=1e-6)


def test_a_model_that_copies_finds_every_value_at_every_distance(copier):
    assert copier.score("retrieval", "accuracy").value == 1.0
    curve = copier.curve("retrieval", "accuracy")
    assert [(s.place.first, s.place.last) for s in curve] == [(1, 8), (9, 16), (17, 32), (33, 64)]
    assert all(s.value == 1.0 for s in curve)


def test_a_model_that_copies_knows_labels_from_the_second_round_on_and_not_before(copier):
    rounds = [s.value for s in copier.curve("labels", "accuracy")]
    # Before a token's first showing the copier is even over all tokens, so it guesses one label in four.
    assert rounds == pytest.approx([0.25, 1.0, 1.0, 1.0, 1.0])
    assert copier.score("labels", "gain").value == pytest.approx(0.75)


def test_a_model_that_says_nothing_is_at_chance_everywhere(knows_nothing):
    v = 200
    expected = {
        ("induction", "accuracy"): 1 / v,
        ("induction", "gain"): 0.0,
        ("induction", "text_gain"): 0.0,
        ("induction", "loss"): math.log(v),
        ("retrieval", "accuracy"): 1 / 16,
        ("retrieval", "log_probability"): -math.log(v),
        ("labels", "accuracy"): 1 / 4,
        ("labels", "log_probability"): -math.log(4),
        ("labels", "gain"): 0.0,
        ("linear", "accuracy"): 1 / 2,
        ("linear", "log_probability"): -math.log(2),
        ("recall", "loss"): math.log(v),
        ("recall", "context_gain"): 0.0,
        ("calibration", "brier"): 1 - 1 / v,
    }
    for key, value in expected.items():
        score = knows_nothing.score(*key)
        assert score.value == pytest.approx(value, abs=1e-6), key
        assert score.chance == pytest.approx(value) and score.standing == "at", key


def test_a_walk_round_three_tokens_always_ends_in_a_loop():
    found = of(round_three, tasks=["repetition"])
    for way in ("greedy", "sampled"):
        assert found.score("repetition", f"{way}_loops").value == 1.0
        assert found.score("repetition", f"{way}_distinct_1").value == pytest.approx(3 / 96)
        assert found.score("repetition", f"{way}_repeated_end").value == pytest.approx(96 - 3, abs=1)


def test_a_model_that_counts_never_repeats_itself():
    found = of(counting, tasks=["repetition"], vocab=500)
    for way in ("greedy", "sampled"):
        assert found.score("repetition", f"{way}_loops").value == 0.0
        assert found.score("repetition", f"{way}_distinct_3").value == 1.0


def test_a_model_reads_its_own_text_with_calibrated_probabilities_and_a_sharper_one_does_not():
    text = text_of(bigram())
    options = {"text": text, "tasks": ["calibration"], "inputs": 40}
    own, sharp = of(bigram(), **options), of(bigram(3.0), **options)
    for name in ("ece", "ece_all", "ece_rest"):
        level = own.score("calibration", name).chance
        assert own.score("calibration", name).value < 2 * level < 0.08
        assert own.score("calibration", name).standing == "at"
        assert sharp.score("calibration", name).standing == "worse"
    assert sharp.score("calibration", "ece").value > 0.2
    told = {(d.task, d.measure): d.verdict for d in compare(own, sharp)}
    assert told["calibration", "ece"] == told["calibration", "brier"] == "worse"


def test_the_loss_by_position_is_that_of_the_model_itself(tiny_model):
    model = tiny_model("llama").eval()
    text = torch.randint(4, 90, (5, 128), generator=torch.Generator().manual_seed(1))
    found = run_battery(model, text=text, tasks=["recall"], inputs=5)
    with torch.no_grad():
        logits = model(text).logits.double()
    loss = -logits[:, :-1].log_softmax(-1).gather(-1, text[:, 1:, None])[..., 0].numpy()
    assert found.score("recall", "loss").per_input == pytest.approx(loss[:, :63].mean(1), rel=1e-5)
    beyond = loss[:, 63:127].mean(1) - loss[:, 31:63].mean(1)
    assert found.score("recall", "beyond").per_input == pytest.approx(beyond, abs=1e-5)
    assert [str(s.place) for s in found.curve("recall", "loss")] == [
        "4 to 7",
        "8 to 15",
        "16 to 31",
        "32 to 63",
        "64 to 127",
    ]


def test_a_table_of_positions_leaves_nothing_beyond_and_says_so(tiny_model):
    text = torch.randint(4, 90, (4, 256), generator=torch.Generator().manual_seed(1))
    for name in ("gpt2", "opt"):
        found = run_battery(tiny_model(name), text=text, tasks=["recall"], inputs=4)
        assert [s.measure for s in found.headline] == ["loss", "context_gain"]
        assert "not applicable, the model has a table of 64 positions and no more" in found.notes[0]
    rotary = run_battery(tiny_model("llama"), text=text, tasks=["recall"], inputs=4)
    assert rotary.score("recall", "beyond").interval.low < rotary.score("recall", "beyond").interval.high


@pytest.mark.parametrize("name", zoo.DECODERS)
def test_every_decoder_goes_through_the_battery(tiny_model, name):
    found = run_battery(tiny_model(name), **FEW)
    assert set(found.skipped) == {"recall", "calibration"}
    assert all("no tokenizer" in why for why in found.skipped.values())
    assert all(np.isfinite(s.value) for s in found.headline)
    # A window of four tokens sees nothing of the first copy; everything else gives it some attention.
    windowed = name in ("mistral", "starcoder2")
    assert (found.score("induction", "prefix_matching").value == 0) == windowed
    json.dumps(found.document(), allow_nan=False)


def test_prefix_matching_is_attention_on_the_token_behind_the_earlier_place(tiny_model):
    model = tiny_model("llama").eval()
    subject = subject_of(model)
    given = repeated(make_material(subject, inputs=3, seed=2))
    found = prefix_matching(subject, given)
    seen = capture(resolve(model), given.ids, ["attn.probs"])
    for (layer, head), values in found.items():
        probs = seen[Site(layer, "attn.probs")]
        for sample in range(3):
            naive = []
            for i in range(given.length, 2 * given.length - 1):
                token = given.ids[sample, i]
                earlier = int((given.ids[sample, :i] == token).nonzero()[-1])
                naive.append(float(probs[sample, head, i, earlier + 1]))
            assert values[sample] == pytest.approx(np.mean(naive), rel=1e-5)


def test_questions_ask_for_what_was_told_and_distances_count_back_to_it():
    given = questions(make_material(subject_of(Known(even)), inputs=5, seed=3))
    ids = given.ids.numpy()
    for sample in range(5):
        for question, place in enumerate(given.places.tolist()):
            earlier = np.flatnonzero(ids[sample, :place] == ids[sample, place])[-1]
            assert place - earlier == given.distance[sample, question]
            value = given.values[sample, given.asked[sample, question]]
            assert ids[sample, earlier + 1] == ids[sample, place + 1] == value


def test_no_example_of_a_linear_rule_is_shown_twice_and_least_squares_solves_most():
    given = examples(make_material(subject_of(Known(even)), inputs=40))
    assert all(len(np.unique(x, axis=0)) == len(x) for x in given.x)
    ids, size = given.ids.numpy(), given.x.shape[2]
    for sample in range(40):
        for i, place in enumerate(given.places.tolist()):
            bits = ids[sample, place - size + 1 : place + 1]
            assert len(np.unique(bits)) == len(np.unique(given.x[sample, i]))
            assert ids[sample, place + 1] == given.labels[sample, given.right[sample, i]]
    solved = least_squares(given).mean(0)
    assert solved[0] == 0.5 and solved[len(solved) // 2 :].mean() > 0.8


def test_special_ids_are_never_drawn_and_the_prefix_begins_every_input(checkpoint_parts):
    model, tokenizer = checkpoint_parts
    material = make_material(subject_of(model), tokenizer, text="the quick brown fox " * 200, inputs=4)
    assert not set(material.pool.tolist()) & set(tokenizer.all_special_ids)
    assert material.prefix == (1,)
    assert (repeated(material).ids[:, 0] == 1).all()


def test_ids_come_from_the_text_where_it_has_enough_of_them():
    text = torch.arange(100, 180).repeat(4, 2)
    material = make_material(subject_of(Known(even), length=128), text=text, inputs=4)
    assert set(material.pool.tolist()) == set(range(100, 180))
    few = make_material(subject_of(Known(even), length=128), text=text.clamp_max(120), inputs=4)
    assert len(few.pool) == 200


def test_a_stream_of_ids_is_cut_into_windows_of_its_held_out_end():
    stream = torch.arange(10_000) % 199
    subject = subject_of(Known(even), length=16)
    material = make_material(subject, text=stream, held_out=0.1, inputs=8, stretch=2)
    assert material.text.shape == (8, 32)
    starts = [int(row[0]) for row in material.text]
    allowed = {int(x) for x in stream[9000:]}
    assert len(set(starts)) > 1 and set(starts) <= allowed


def test_the_batch_size_changes_nothing_and_the_same_seed_gives_the_same_numbers(tiny_model):
    model = tiny_model("llama").double()
    text = torch.randint(4, 90, (6, 128), generator=torch.Generator().manual_seed(1))
    whole = run_battery(model, text=text, **FEW)
    single = run_battery(model, text=text, batch_size=1, **FEW)
    again = run_battery(model, text=text, **FEW)
    for a, b, c in zip(whole.scores, single.scores, again.scores, strict=True):
        np.testing.assert_array_equal(a.parts, c.parts)
        np.testing.assert_allclose(a.parts, b.parts, atol=1e-6)
    other = run_battery(model, text=text, seed=1, **FEW)
    assert other.score("induction", "loss").value != whole.score("induction", "loss").value


def test_the_model_and_the_random_numbers_are_left_as_they_were(tiny_model):
    model = tiny_model("llama").train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run_battery(model, tasks=["induction", "repetition"], **FEW)
    assert model.training and torch.rand(1) == expected


def test_half_precision_is_the_models_own(tiny_model):
    found = run_battery(tiny_model("llama").to(torch.bfloat16), **FEW)
    assert all(np.isfinite(s.value) for s in found.headline)


def test_a_document_holds_the_whole_battery(knows_nothing):
    text = json.dumps(knows_nothing.document(), allow_nan=False)
    back = Battery.from_document(json.loads(text))
    assert back.document() == knows_nothing.document()
    assert [s.interval for s in back.scores] == [s.interval for s in knows_nothing.scores]


def test_refusals_say_what_is_wrong_and_what_to_do(tiny_model, knows_nothing):
    with pytest.raises(UnknownOption, match="no task 'retreival'; did you mean 'retrieval'"):
        check_tasks(["retreival"])
    with pytest.raises(UnknownOption, match="no task was named; there are induction"):
        check_tasks([])
    with pytest.raises(NotPossible, match="sees later tokens: it is no decoder"):
        of(looking_ahead)
    with pytest.raises(NotPossible, match="it is no decoder"):
        run_battery(zoo.tiny("bert"), **FEW)
    with pytest.raises(NotPossible, match="has 64 positions; ask for at most that many"):
        run_battery(zoo.tiny("gpt2"), training_length=100)
    with pytest.raises(BrokenModel, match="its logits hold NaN"):
        of(broken)
    with pytest.raises(UnknownOption, match="inputs=1: an interval needs at least 2"):
        of(even, inputs=1)
    with pytest.raises(UnknownOption, match="held_out=2.0: it is a share"):
        of(even, held_out=2.0)
    with pytest.raises(BadTokens, match="outside the model's vocabulary of 200 ids"):
        of(even, text=torch.full((2, 20), 200))
    with pytest.raises(BadTokens, match="10 token ids: one window takes 512"):
        of(even, text=torch.arange(10))
    with pytest.raises(UnknownOption, match="no score induction.acuracy; did you mean 'induction.accuracy'"):
        knows_nothing.score("induction", "acuracy")


def test_a_model_too_small_for_a_task_is_told_why():
    found = of(even, training_length=8)
    assert set(found.skipped) == set(TASKS)
    assert "16 positions and 8 different ids; there are 8 and 200" in found.skipped["induction"]
    tiny = of(even, vocab=9)
    assert "there are 128 and 9" in tiny.skipped["labels"]


@pytest.fixture
def checkpoint_parts(tiny_model):
    """A small model and a tokenizer of 90 tokens that puts id 1 in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *["the", "quick", "brown", "fox"],
        *(f"w{i}" for i in range(70)),
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return tiny_model("llama"), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
