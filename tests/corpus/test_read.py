"""Where text comes from, and every sentence about text that cannot be read."""

import json
import sys
import types
from pathlib import Path

import pytest

from skerry.corpus import Corpus, from_text, read
from skerry.corpus import read as read_function
from skerry.errors import BadText, MissingExtra


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(source, **options) -> str:
    with pytest.raises(BadText) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_one_document_with_plain_line_ends(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read(str(path)) == Corpus(str(path), ("one\ntwo\nthree\n",))
    assert read(path).documents == ("one\ntwo\nthree\n",)


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path):
    for name, text in {
        "b.md": "B",
        "a/z.txt": "Z",
        "a/b.rst": "R",
        "c.py": "no",
        ".hidden/x.txt": "no",
        "d.txt": " \n",
    }.items():
        write(tmp_path / name, text)
    write(tmp_path / "e.jsonl", '{"text": "J"}\n')
    corpus = read(tmp_path)
    assert corpus.documents == ("R", "Z", "B", "J")
    assert corpus.name == f"{tmp_path} (5 files)"


def test_json_lines_are_one_document_each(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one", "title": "t"}\n\n{"text": "two"}\n"three"\n')
    assert read(path).documents == ("one", "two", "three")
    other = write(tmp_path / "b.jsonl", '{"id": 1, "body": "one"}\n{"id": 2, "body": "two"}\n')
    assert read(other).documents == ("one", "two")
    assert read(path.rename(tmp_path / "c.ndjson")).documents[0] == "one"
    two = write(tmp_path / "d.jsonl", '{"a": "one", "b": "two"}\n')
    assert read(two, field="b").documents == ("two",)


def test_a_sentence_is_the_text_itself():
    assert read("this text is passed as it is").documents == ("this text is passed as it is",)
    assert read("one line\nand another").name == "text given by the caller"
    assert from_text("abc", name="n").name == "n"


def test_none_and_builtin_are_the_prose_of_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys.modules["skerry.corpus.read"], "builtin", lambda: Corpus("the prose", ("x",)))
    assert {read(source).name for source in (None, "builtin", "python-prose")} == {"the prose"}


def test_a_very_long_text_is_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["skerry.corpus.read"], "MAX_CHARACTERS", 10)
    for name, text in {"a.txt": "1234567", "b.txt": "89abcdef", "c.txt": "more"}.items():
        write(tmp_path / name, text)
    corpus = read(tmp_path)
    assert corpus.documents == ("1234567", "89a")
    assert corpus.notes == ("only the first 10 characters are read",)
    euro = write(tmp_path / "euro" / "d.txt", "x" + "€" * 20)  # 40 bytes end inside a character
    assert read(euro).documents == ("x" + "€" * 9,)


def test_what_is_not_there_is_named_with_its_neighbours(tmp_path):
    write(tmp_path / "notes.txt", "x")
    assert refused(tmp_path / "note.txt") == f"no text '{tmp_path}/note.txt': did you mean 'notes.txt'?"
    assert refused(str(tmp_path / "qqq")).endswith(
        "a text file, a folder, JSON lines, datasets:NAME or builtin is expected"
    )
    assert refused(tmp_path / "no" / "a.txt").endswith(f"there is no folder '{tmp_path}/no'")


def test_empty_files_are_refused(tmp_path):
    assert refused(write(tmp_path / "a.txt", "")) == f"{tmp_path}/a.txt is empty; name a file with text"
    assert refused(write(tmp_path / "b.jsonl", "\n")) == f"{tmp_path}/b.jsonl is empty; name a file with text"
    assert refused(tmp_path) == f"the 2 text files in {tmp_path} are all empty"
    assert refused("  \n ") == "the text is empty; give some text, or None for the built-in corpus"


def test_folders_without_text_are_refused(tmp_path):
    assert refused(tmp_path).endswith(": it is empty")
    write(tmp_path / "a.py", "x")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path} holds no text files (.txt, ") and message.endswith("it has .py")


def test_binary_files_are_refused(tmp_path):
    assert (
        refused(write(tmp_path / "a.txt", b"abc\0def"))
        == f"{tmp_path}/a.txt is binary: byte 0 at offset 3; a UTF-8 text file is expected"
    )
    assert "byte 0 at offset 1" in refused(write(tmp_path / "c.txt", b"\xff\0\0"))
    message = refused(write(tmp_path / "d.txt", b"\x01\x02\x03 text"))
    assert "is binary: 3 control characters in its first 8" in message
    for content, kind in {
        b"\xff\xfea\0": "UTF-16, not text; save it as UTF-8",
        b"\x1f\x8b..": "gzip, not text",
        b"PK\x03\x04": "a zip archive",
        b"PAR1": "Parquet",
        b"%PDF-": "PDF",
    }.items():
        assert kind in refused(write(tmp_path / "e.txt", content))


def test_text_with_colours_and_form_feeds_is_text(tmp_path):
    path = write(tmp_path / "a.txt", "page\f \x1b[1mbold\x1b[0m\ttab")
    assert read(path).num_characters == 22


def test_other_encodings_are_refused_with_their_place(tmp_path):
    path = write(tmp_path / "a.txt", "first line\nBjörk".encode("latin-1"))
    assert (
        refused(path)
        == f"{path} is not UTF-8: byte 0xf6 at offset 13 (line 2); convert it, for example with iconv -t utf-8"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": ', r"line 2: not JSON (Expecting value, column 10)"),
        ("[" * 5000 + "]" * 5000, "line 1: not JSON (nested too deeply, column 1)"),
        ("[1]\n", "line 1: a list; every line must be an object with a text field"),
        ('{"a": "x", "b": "y"}', "line 1: several fields with text ('a', 'b'); name one with field="),
        ('{"a": 1}', "line 1: no field with text; it has 'a'"),
        ("{}", "line 1: no field with text; it has no field"),
        ('{"text": "a"}\n{"text": 1}', "line 2: no text in field 'text'; it holds a int"),
        ('{"text": "a"}\n{"body": "b"}', "line 2: no text in field 'text'; it has 'body'"),
    ],
)
def test_broken_json_lines_are_refused_with_their_line(tmp_path, content, words):
    path = write(tmp_path / "a.jsonl", content)
    assert refused(path) == f"{path}, {words}"


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "x")

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert refused(path) == f"{path} cannot be read: Permission denied"


class Library(types.ModuleType):
    """The two calls of `datasets` that are used, over plain lists."""

    def __init__(self, content):
        super().__init__("datasets")
        self.content, self.asked = content, None

    def load_dataset(self, name, config, *, split, streaming):
        self.asked = (name, config, split, streaming)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content if split is None else self.content[split]

    def load_from_disk(self, path):
        return self.load_dataset(path, None, split=None, streaming=False)


@pytest.fixture
def library(monkeypatch):
    def install(content):
        module = Library(content)
        monkeypatch.setitem(sys.modules, "datasets", module)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        return module

    return install


def test_a_data_set_is_streamed(library):
    module = library({"test": [{"text": "no"}], "train": [{"text": "one"}, {"text": ""}, {"text": "two"}]})
    corpus = read("datasets:org/name")
    assert module.asked == ("org/name", None, None, True)
    assert corpus == Corpus("datasets:org/name", ("one", "two"), ("split 'train'",))
    assert read("datasets:org/name:small:test").documents == ("no",)
    assert module.asked == ("org/name", "small", "test", True)


def test_a_data_set_is_read_only_as_far_as_needed(library, monkeypatch):
    monkeypatch.setattr("skerry.corpus.hub.MAX_STREAMED", 8)

    def endless():
        while True:
            yield {"body": "12345"}

    library({"train": endless()})
    corpus = read("datasets:big")
    assert corpus.documents == ("12345", "123")
    assert corpus.notes == ("split 'train'", "only the first 8 characters are read")


def test_a_folder_of_save_to_disk_is_a_data_set(library, tmp_path):
    write(tmp_path / "dataset_info.json", "{}")
    library([{"text": "one"}])
    assert read(tmp_path) == Corpus(str(tmp_path), ("one",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": []}, "datasets:x is empty"),
        ({"train": [{"n": 1}]}, "datasets:x, row 0: no field with text; it has 'n'"),
        ({"train": [{"text": " "}]}, "datasets:x: field 'text' is empty in every row"),
        (
            {"train": [{"text": "a"}, {"text": None}]},
            "datasets:x, row 1: no text in field 'text'; it holds a NoneType",
        ),
        ({"train": [{"text": "a"}, {"b": 1}]}, "datasets:x, row 1: no text in field 'text'; it has 'b'"),
        (
            RuntimeError("the server is tired\nand says more"),
            "data set 'x' cannot be read: the server is tired",
        ),
        (RuntimeError(), "data set 'x' cannot be read: RuntimeError"),
    ],
)
def test_data_sets_without_text_are_refused(library, content, words):
    library(content)
    assert refused("datasets:x") == words


def test_a_damaged_data_set_folder_is_refused(library, tmp_path):
    write(tmp_path / "dataset_dict.json", "{}")
    library(ValueError("bad arrow"))
    assert refused(tmp_path) == f"data set in {tmp_path} cannot be read: bad arrow"


def test_a_data_set_needs_a_name(library):
    library({})
    assert refused("datasets:").startswith("datasets: without a name; write datasets:NAME")


def test_a_missing_library_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra,
        match=r'a datasets: name needs the library `datasets`, which is not installed: pip install "skerry\[datasets\]"',
    ):
        read("datasets:x")
    write(tmp_path / "dataset_info.json", json.dumps({}))
    with pytest.raises(MissingExtra, match=r"is a folder of the library `datasets`, which is not installed"):
        read(tmp_path)


def test_a_corpus_says_what_it_holds():
    assert read_function("one line\nand another").sha256 == from_text("one line\nand another").sha256
    assert repr(from_text("abc", name="n")).startswith("<Corpus n: 1 documents, 3 characters, sha256 ")
