"""The built-in corpus: prose, the same every time, and read as a parser would read it."""

import ast
import hashlib
import inspect
import io
import json
import platform
import sysconfig
import tokenize
from pathlib import Path

import pytest

from skerry.corpus import builtin
from skerry.corpus.builtin import _texts, prose
from skerry.errors import BadText

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def corpus(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return builtin()


def test_it_is_a_million_characters_of_named_text(corpus):
    assert corpus.name == f"python-prose v1, {platform.python_implementation()} {platform.python_version()}"
    assert corpus.num_characters > 1_000_000
    assert len(corpus.documents) > 200
    assert corpus.sha256 == hashlib.sha256("".join(d + "\0" for d in corpus.documents).encode()).hexdigest()


def test_the_cache_holds_the_very_same_text(corpus, cache):
    assert len(list(cache.rglob("*.json"))) == 1
    assert builtin().documents == corpus.documents


@pytest.mark.parametrize(
    "damage", ["{", '{"sha256": "0", "documents": ["x"]}', "[]", '{"sha256": 1, "documents": [2]}']
)
def test_a_damaged_cache_is_built_again(corpus, cache, damage):
    (path,) = cache.rglob("*.json")
    path.write_text(damage)
    assert builtin().sha256 == corpus.sha256
    assert json.loads(path.read_text())["documents"] == list(corpus.documents)


def test_a_cache_that_cannot_be_written_is_no_obstacle(corpus, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert builtin().sha256 == corpus.sha256


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(
        BadText, match="carries no source files, so it has no prose to read; name a text with --text"
    ):
        builtin()


def test_paragraphs_are_prose(corpus):
    paragraphs = [p for document in corpus.documents for p in document.split("\n\n")]
    assert len(paragraphs) > 8000
    assert not any(p.startswith(">>>") or "\n" in p for p in paragraphs)
    letters = sum(c.isalpha() or c.isspace() for p in paragraphs for c in p) / sum(map(len, paragraphs))
    assert letters > 0.92  # the rest of English prose is punctuation


def test_code_doctests_and_tables_are_left_out_and_sentences_stay():
    source = '''
"""The first sentence of this module says what it is for.

    >>> doctest(1)
    the answer of this doctest is not a sentence of the text

===============  ===============
A table's head   of two columns!
===============  ===============

A second paragraph of this docstring
goes over two lines of the source file.
"""
# A comment block that is long enough to be read as a sentence,
# and that goes on in the next line of the file.
#
# if the_code_is(commented_out) == True and it.is_long_enough(): return False
x = 1  # a remark behind the code is not a paragraph of the text, whatever it says
y = """a value of the program is no docstring, though it is written as the others are"""
'''
    assert prose(source).split("\n\n") == [
        "The first sentence of this module says what it is for.",
        "A second paragraph of this docstring goes over two lines of the source file.",
        "A comment block that is long enough to be read as a sentence, and that goes on in the next line of the file.",
    ]


@pytest.mark.parametrize(
    "name", ["argparse", "ast", "inspect", "pickletools", "random", "textwrap", "tarfile", "typing"]
)
def test_reading_lexically_finds_what_parsing_finds(name):
    """The slow twin: docstrings from the syntax tree, comments from the tokenizer."""
    source = (STDLIB / f"{name}.py").read_text("utf-8")
    texts = set(_texts(source))
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, nodes) and (text := ast.get_docstring(node)):
            start = lines[node.body[0].lineno - 1].strip()
            if start.lstrip("rR")[:3] in ('"""', "'''") and "\\" not in text:
                assert inspect.cleandoc(text) in texts
    comments = {
        token.string.lstrip("#!: ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }
    assert comments <= {line for text in texts for line in text.split("\n")}
