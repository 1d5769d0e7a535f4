"""Tables and texts that are read a part at a time, since they may be larger than memory, are as when read whole."""

import errno
import os
import resource
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpref.leftovers import undo_all
from bpref.train.data import mapped, read_csv, text
from bpref.train.data.read_csv import read_csv as read
from bpref.train.data.rows import Rows, examples
from bpref.train.data.text import byte_pairs, read_text, texts_of

TABLE = "\n".join(["a,b,y", *(f"{i},{(i * 7) % 11},{2 * i + 0.5}" for i in range(9))])


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """Where the numbers lie; nothing is left there."""
    place = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    undo_all()
    assert not os.listdir(place)


@pytest.fixture
def in_parts(monkeypatch):
    """From now on a table is read two rows at a time, and a text some bytes."""

    def in_parts():
        monkeypatch.setattr(mapped, "IN_MEMORY", 0)
        monkeypatch.setattr(read_csv, "ROWS", 2)
        monkeypatch.setattr(text, "TEXT_AT_ONCE", 8)

    return in_parts


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (TABLE, "refuse"),
        ("a;b;y\r\n\r\n1;2;cat\r\n3;4;dog\r\n5;6;cat\r\n7;9;dog\r\n", "refuse"),
        ("\ufeff,a,y\n0,1,5\n1,2,5\n7,3,6\n9,4,6\n12,5,6\n", "refuse"),
        ("a,b,y\n1,2,3\n,2,4\n,,\n3,1,8\n4,,9.5\n", "drop"),
    ],
    ids=["numbers", "classes", "index", "drop"],
)
def test_a_table_of_numbers_is_the_same(content, missing, as_csv, in_parts, temporary):
    path = as_csv(content)
    whole = read(path, "y", None, missing)
    in_parts()
    table = read(path, "y", None, missing)
    assert isinstance(table.X, Rows)
    np.testing.assert_array_equal(table.X[:], whole.X)
    np.testing.assert_array_equal(table.y, whole.y)
    for name in ("feature_names", "target_name", "classes", "columns"):
        assert getattr(table, name) == getattr(whole, name)
    (folder,) = os.listdir(temporary)
    said = f"{path} is larger than 0 MB, and is not read at once: its numbers are in {temporary}/{folder}/t.csv.numbers"
    assert set(table.notes) == {*whole.notes, f"{said} as long as this runs"}


LARGE = "is larger than 0 MB, and is not read at once"


@pytest.mark.parametrize(
    ("content", "missing", "message"),
    [
        ("a,y\n1,2\n2,3\ncat,4\n", "refuse", f"{{0}}, line 4, column 'a': 'cat' is not a number; {{0}} {LARGE}: its "),
        ("a,y\n1,2\n2,3\n3\n", "refuse", "{}, line 4: 1 values, expected 2 as in the header"),
        ("a,y\n1,2\n2,3\n3,\n", "refuse", "{}, line 4, column 'y': the value is missing; no target is imputed, "),
        ("a,y\n1,2\n2,3\n", "impute", f"{{}} {LARGE}: of what is missing, rows can be left out (--missing drop), and "),
        ("a,y\n1,\n,3\n", "drop", "{}: something is missing in each of the 2 rows; none is left"),
        (",y\n3,2\n2,3\n", "refuse", "{}, line 1: column 1 has no name"),
        (",a,y\n0,1,2\n1,2,3\n1,3,4\n", "refuse", "{}, line 1: column 1 has no name"),
        ("a,y\n", "refuse", "{}: there is a header and no data"),
        ("\n\n", "refuse", "{}: the file is empty"),
        ("1,2\n3,4\n", "refuse", "{}, line 1: expected the names of the columns, got the numbers 1, 2"),
        ("a,y\n1,2\n2,3\n3,\udcff\n", "refuse", "{}: not a CSV file in UTF-8 ("),
    ],
)
def test_a_bad_table_is_refused_as_when_it_is_read_whole(content, missing, message, as_csv, in_parts):
    in_parts()
    path = as_csv(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as error:
        read(path, "y", None, missing)
    assert str(error.value).startswith(message.format(path))


def test_where_there_is_no_room_for_the_numbers(as_csv, in_parts, temporary):
    in_parts()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = as_csv(TABLE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as error:
            read(path, "y")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.strerror.endswith(f", where {path} is written as numbers; TMPDIR names another place")
    assert str(temporary) in error.value.filename
    assert not os.listdir(temporary)


TEXT = "the cat sat on the mat;\n\n ünïcode — too.\r\n\tand x  = 1 'll\n\n\n" * 20


def test_byte_pairs_of_a_text_are_the_same(tmp_path, in_parts):
    path = tmp_path / "t.txt"
    path.write_bytes(TEXT.encode())
    whole = read_text(path, 8, "bpe", 300)
    in_parts()
    read = read_text(path, 8, "bpe", 300)
    assert read.tokenizer.saved == whole.tokenizer.saved
    for ours, theirs in zip((*read.train, *read.test), (*whole.train, *whole.test), strict=True):
        assert isinstance(examples(ours), Rows)
        np.testing.assert_array_equal(ours, theirs)
    assert read.bytes_per_token == whole.bytes_per_token
    assert read.unigram == pytest.approx(whole.unigram)


LEARNED = byte_pairs([TEXT], 330)


@given(st.text(st.sampled_from("ab1 \n\r\t'ls.é\u2028\u00a0\u0301—") | st.characters(codec="utf-8")), st.integers(1, 9))
def test_what_is_cut_is_encoded_as_the_whole(content, at_once):
    as_bytes = np.frombuffer(content.encode(), np.uint8)
    parts = list(texts_of(as_bytes, at_once))
    assert "".join(parts) == content
    ids = [i for part in parts for i in LEARNED.encode(part)]
    assert ids == list(LEARNED.encode(content))
    assert byte_pairs(parts, 300).saved == byte_pairs([content], 300).saved


def test_a_text_without_a_place_to_cut_is_one_part():
    assert [len(part) for part in texts_of(np.full(100, ord("a"), np.uint8), 7)] == [100]
    assert list(texts_of(np.zeros(0, np.uint8))) == []
