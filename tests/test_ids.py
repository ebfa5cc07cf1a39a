"""Ids that were seen, also beyond those held in memory."""

import sqlite3
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioxfer import ids
from bioxfer.errors import DuplicateIdError, InputError
from bioxfer.ids import SeenIds
from bioxfer.io import read_sequences


@given(st.lists(st.text(max_size=4), max_size=60), st.integers(1, 9))
def test_it_knows_what_a_dict_knows(texts, recent):
    known = {}
    with pytest.MonkeyPatch.context() as patch, SeenIds() as seen:
        patch.setattr(ids, "_RECENT", recent)
        for line, text in enumerate(texts, 1):
            assert seen.line_of(text) == known.get(text)
            if text not in known:
                seen.add(text, line)
                known[text] = line
        assert all(seen.line_of(text) == line for text, line in known.items())


def test_bytes_that_are_no_utf8_are_told_apart(monkeypatch):
    monkeypatch.setattr(ids, "_RECENT", 1)
    with SeenIds() as seen:
        seen.add("caf\udce9", 1)
        assert seen.line_of("caf\udce9") == 1
        assert seen.line_of("caf\udce8") is None


def test_memory_does_not_grow_with_ids(monkeypatch):
    monkeypatch.setattr(ids, "_RECENT", 10_000)

    def peak(count):
        tracemalloc.start()
        try:
            with SeenIds() as seen:
                for number in range(count):
                    seen.add(f"sp|Q{number:06d}|PROT_HUMAN", number + 1)
                assert seen.line_of("sp|Q000000|PROT_HUMAN") == 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(80_000) < 1.1 * peak(20_000)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Write 40 records of which the last repeats the first, far beyond what is held in memory."""
    monkeypatch.setattr(ids, "_RECENT", 4)
    path = tmp_path / "many.fasta"
    path.write_text("".join(f">p{n % 39}\nMKV\n" for n in range(40)))
    return path


def test_a_duplicate_is_found_however_far_it_is(many):
    with pytest.raises(DuplicateIdError, match=r"line 79: id 'p0' is already used in line 1;"):
        read_sequences(many)
    renamed = read_sequences(many, on_duplicate="rename")
    assert [record.id for record in renamed] == [f"p{n}" for n in range(39)] + ["p0_2"]


def test_a_full_temporary_folder_is_one_sentence(many, monkeypatch):
    class Full:
        def execute(self, *statement):
            raise sqlite3.OperationalError("database or disk is full")

        def close(self):
            pass

    monkeypatch.setattr(ids.sqlite3, "connect", lambda *place, **options: Full())
    with pytest.raises(InputError, match=r"temporary files \(database or disk is full\); make room"):
        read_sequences(many)
