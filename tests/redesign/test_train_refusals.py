"""What a training refuses, before anything long begins, and in which words."""

import json
from dataclasses import replace

import numpy as np
import pytest

from skerry.errors import BadText, BadTokens, NotPossible, UnknownOption
from skerry.redesign.recipe import Recipe
from skerry.redesign.text import train_tokenizer
from skerry.redesign.token_files import open_tokens, tokens_key
from skerry.redesign.train import train
from skerry.redesign.train_check import check_recipe
from skerry.redesign.train_data import load_data
from skerry.redesign.train_recipes import find_recipe, recipe_key

SMALL = Recipe(vocabulary=260, context=16, layers=1, width=16, heads=2, steps=4, warmup=1, batch=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": "softmx"}, "no attention variant 'softmx'; did you mean 'softmax'"),
        ({"optimiser": "adamv"}, "no optimiser 'adamv'; did you mean 'adamw'"),
        ({"optimiser_options": {"beta": 1}}, "adamw has no option 'beta'; did you mean 'betas'"),
        ({"schedule": "cosin"}, "no schedule 'cosin'; did you mean 'cosine'"),
        ({"precision": "bf1"}, "no precision 'bf1'; did you mean 'bf16'"),
        ({"position": "ropes"}, "no position 'ropes'; did you mean 'rope'"),
        (
            {"attention": "scaled", "attention_options": {"x": 1}},
            "attention variant 'scaled' has no option 'x'",
        ),
        ({"objective": {"z_los": 1}}, "no part of an objective 'z_los'; did you mean 'z_loss'"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"context": 1}, "context is 1; it must be at least 2"),
        ({"held_out": 1.0}, "held_out is 1.0; it must be above 0 and below 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"final": 2.0}, "final is 2.0; it must be at least 0 and at most 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"heads": 3}, "a width of 16 cannot be shared by 3 heads"),
        ({"heads": 16}, "heads of 1 channels cannot be rotated in pairs"),
        ({"kv_heads": 3}, "2 heads cannot share 3 key/value heads"),
        ({"warmup": 9}, "9 steps of warm-up are more than all 4 steps"),
        ({"vocabulary": 100}, "a tokenizer of 100 tokens has no room for the 256 bytes"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_before_a_folder_is_made(tmp_path, change, words):
    with pytest.raises((UnknownOption, NotPossible)) as caught:
        train(replace(SMALL, **change), tmp_path / "t")
    assert words in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_the_defaults_and_every_variant_pass_the_checks():
    from skerry.redesign.variants import variants

    check_recipe(Recipe())
    for name in variants():
        check_recipe(Recipe(attention=name))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"save_every": 0}, "save_every is 0; it must be at least 1"),
        ({"births_every": -1}, "births_every is -1; it must be at least 1, or 0 for never"),
        ({"dtype": "bf61"}, "no dtype 'bf61'; did you mean 'bf16'"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(tmp_path, asked, words):
    with pytest.raises(UnknownOption) as caught:
        train(SMALL, tmp_path / "t", **asked)
    assert words in str(caught.value)


def test_a_text_shorter_than_a_batch_or_a_held_out_window_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    asked = replace(SMALL, text=str(path), held_out=0.5)
    with pytest.raises(BadText, match=r"tokens to train on and one batch reads 512 \(32 windows of 16\)"):
        load_data(replace(asked, batch=32), None)
    with pytest.raises(BadText, match="less than one held-out window of 16"):
        load_data(replace(asked, held_out=0.05), None)
    with pytest.raises(BadText, match="no text"):
        load_data(replace(SMALL, text=str(tmp_path / "nothing.txt")), None)


def test_token_files_are_mapped_and_read_as_they_are(tmp_path):
    ids = np.arange(600) % 50
    np.save(tmp_path / "a.npy", ids.astype(np.int32))
    ids.astype(np.uint16).tofile(tmp_path / "b.bin")
    ids.astype(np.uint32).tofile(tmp_path / "c.bin")
    (tmp_path / "c.json").write_text('{"dtype": "uint32"}')
    for name in ("a.npy", "b.bin", "c.bin"):
        found = open_tokens(tmp_path / name)
        assert (
            isinstance(found, np.memmap)
            and np.array_equal(found, ids)
            and tokens_key(found) == tokens_key(ids)
        )
    recipe = replace(SMALL, text=str(tmp_path / "b.bin"), vocabulary=50)
    data = load_data(recipe, None)
    assert data.bos is None and data.tokenizer is None and data.num_tokens == 570
    assert (data.batch(0) < 50).all() and np.array_equal(data.held_out()[0], ids[570:586])
    trained = train(recipe, tmp_path / "t")
    assert trained.model.config.vocab_size == 50 and np.isfinite(trained.losses).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.npy",
            np.zeros((3, 4), np.int64),
            r"holds int64 of shape \[3, 4\]; one axis of integers is expected",
        ),
        ("a.npy", np.zeros(9), "holds float64"),
        ("a.npy", b"no header", "cannot be read as token ids"),
        ("a.bin", b"abc", "has 3 bytes, no whole number of uint16 ids"),
        ("a.bin", b"", "is empty"),
        ("a.bin", None, "there is no token file"),
        (
            "a.npy",
            np.array([1, 2, 260, 3] * 100),
            "holds the id 260 at place 2, and the vocabulary has 260 tokens",
        ),
        ("a.npy", np.array([1, -1] * 100), "holds the id -1 at place 1"),
    ],
)
def test_token_files_that_do_not_fit_are_refused(tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(BadTokens, match=words):
        load_data(replace(SMALL, text=str(path)), None)


def test_objects_in_a_token_file_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadTokens, match="cannot be read"):
        load_data(replace(SMALL, text=str(tmp_path / "a.npy")), None)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_and_a_fitting_one_is_used(tmp_path):
    text = "The quick brown fox jumps over the lazy dog. " * 40
    (tmp_path / "fox.txt").write_text(text)
    train_tokenizer([text], vocabulary=275).save_pretrained(tmp_path / "tok")
    asked = replace(SMALL, text=str(tmp_path / "fox.txt"), tokenizer=str(tmp_path / "tok"))
    with pytest.raises(
        BadTokens, match="has 275 tokens and the vocabulary 260; give a vocabulary of at least 275"
    ):
        load_data(asked, None)
    assert len(load_data(replace(asked, vocabulary=280), None).tokenizer) == 275
    with pytest.raises(UnknownOption, match="no tokenizer can be read from"):
        load_data(replace(asked, tokenizer=str(tmp_path / "none")), None)


def test_recipes_come_from_files_folders_and_changes(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"layers": 2, "attention": "scaled"}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(SMALL.plain()))
    assert find_recipe(tmp_path / "r.json", {"width": 64}) == Recipe(layers=2, attention="scaled", width=64)
    assert find_recipe(tmp_path / "run", {}) == SMALL == find_recipe(SMALL, {})
    assert find_recipe(None, {}) == Recipe() and recipe_key(Recipe()) != recipe_key(SMALL)
    with pytest.raises(UnknownOption, match="there is no recipe"):
        find_recipe("nothing.json", {})
    with pytest.raises(UnknownOption, match="a recipe has no field 'layer'; did you mean 'layers'"):
        find_recipe({"layer": 2}, {})
    with pytest.raises(UnknownOption, match="the recipe's layers is '2': Input should be a valid integer"):
        find_recipe({"layers": "2"}, {})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UnknownOption, match="cannot be read"):
        find_recipe(tmp_path / "bad.json", {})
