"""The cache keeps what was finished, and gives back nothing that is wrong (F20, F21, F22, F24)."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bioxfer.cache
from bioxfer.cache import EmbeddingCache, cache_key, default_cache_path
from bioxfer.errors import OutputError

PACKAGE = str(Path(bioxfer.cache.__file__).parents[1])
SETTINGS = {"fingerprint": "0123456789abcdef", "precision": "fp32", "layer": 6, "policy": "whole"}


def key(residues: str, name: str = "mean") -> bytes:
    return cache_key(residues, **SETTINGS, name=name)


def value(number: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(number).normal(size=size).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.sqlite"


def test_gives_back_what_was_put_bit_for_bit(path):
    special = np.array([np.nan, np.inf, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    matrix = value(1, 12).reshape(3, 4)
    with EmbeddingCache(path) as cache:
        cache.put_many({key("MKV"): special, key("MKV", "residues"): matrix})
    with EmbeddingCache(path) as cache:
        found = cache.get_many([key("MKV"), key("MKV", "residues"), key("absent")])
        assert len(cache) == 2
    assert set(found) == {key("MKV"), key("MKV", "residues")}
    assert found[key("MKV")].tobytes() == special.tobytes()
    assert found[key("MKV", "residues")].shape == (3, 4)
    np.testing.assert_array_equal(found[key("MKV", "residues")], matrix)
    found[key("MKV")] += 1  # arrays belong to the caller


def test_strided_and_double_arrays_are_kept_as_float32(path):
    wide = np.arange(12, dtype=np.float64).reshape(3, 4)
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): wide[:, ::2]})
        found = cache.get_many([key("A")])[key("A")]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0, 2], [4, 6], [8, 10]])


def test_more_keys_than_one_query_takes(path):
    values = {key(f"S{number}"): value(number, 4) for number in range(1203)}
    with EmbeddingCache(path) as cache:
        cache.put_many(values)
        found = cache.get_many(values)
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[k], v) for k, v in values.items())


def test_a_second_value_replaces_the_first(path):
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1)})
        cache.put_many({key("A"): value(2)})
        np.testing.assert_array_equal(cache.get_many([key("A")])[key("A")], value(2))
        assert len(cache) == 1


def test_a_value_beyond_what_sqlite_takes_is_left_out(path, monkeypatch):
    monkeypatch.setattr(bioxfer.cache, "_LARGEST", 400)
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1, 101), key("B"): value(2, 100)})
        assert list(cache.get_many([key("A"), key("B")])) == [key("B")]


def test_f24_a_file_that_another_process_has_replaced_is_left_alone(path):
    cache = EmbeddingCache(path)
    path.unlink()
    path.write_bytes(b"")
    cache._set_aside(RuntimeError("as if damaged"))
    cache.close()
    assert [p.name for p in path.parent.iterdir() if "damaged" in p.name] == []


@pytest.mark.parametrize(
    "change",
    [
        {"residues": "MKVX"},
        {"fingerprint": "fedcba9876543210"},
        {"precision": "bf16"},
        {"layer": 5},
        {"policy": "windows of 1022, overlap 255"},
        {"name": "max"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_f22_every_setting_is_part_of_the_key(change):
    before = {"residues": "MKV", "name": "mean", **SETTINGS}
    assert cache_key(**before) != cache_key(**{**before, **change})
    assert cache_key(**before) == cache_key(**before)


TEXTS = st.text("MKVAwhole 0123|:\n", max_size=6)
FIELDS = st.fixed_dictionaries(
    {
        "residues": TEXTS,
        "fingerprint": TEXTS,
        "precision": TEXTS,
        "layer": st.integers(-3, 40),
        "policy": TEXTS,
        "name": TEXTS,
    }
)


@given(one=FIELDS, other=FIELDS, shared=st.sets(st.sampled_from(["residues", "layer", "policy", "name"])))
def test_f22_two_keys_are_equal_where_every_field_is(one, other, shared):
    other |= {field: one[field] for field in shared}  # so that few fields differ
    assert (cache_key(**one) == cache_key(**other)) == (one == other)


@given(fields=FIELDS, data=st.data())
def test_f22_text_that_moves_from_one_field_to_another_makes_another_key(fields, data):
    giver, taker = data.draw(st.permutations(["residues", "fingerprint", "precision", "policy", "name"]))[:2]
    cut = data.draw(st.integers(0, len(fields[giver])))
    moved = {giver: fields[giver][:cut], taker: fields[taker] + fields[giver][cut:]}
    assert (cache_key(**fields) == cache_key(**(fields | moved))) == (fields | moved == fields)


def test_fields_of_a_key_do_not_run_together():
    assert cache_key("A", **{**SETTINGS, "policy": "wholemean"}, name="") != cache_key(
        "A", **{**SETTINGS, "policy": "whole"}, name="mean"
    )


@pytest.mark.parametrize("column", ["shape", "data", "checksum"])
def test_f21_a_damaged_row_counts_as_missing_and_is_replaced(path, column, caplog):
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1), key("B"): value(2)})
    raw = sqlite3.connect(path)
    (stored,) = raw.execute(f"SELECT {column} FROM bioxfer_embedding_1 WHERE key = ?", [key("A")]).fetchone()
    flipped = bytes([stored[0] ^ 1]) + stored[1:]
    raw.execute(f"UPDATE bioxfer_embedding_1 SET {column} = ? WHERE key = ?", [flipped, key("A")])
    raw.commit()
    raw.close()
    with EmbeddingCache(path) as cache:
        assert list(cache.get_many([key("A"), key("B")])) == [key("B")]
        assert "1 damaged value" in caplog.text
        cache.put_many({key("A"): value(1)})
        np.testing.assert_array_equal(cache.get_many([key("A")])[key("A")], value(1))


@pytest.mark.parametrize("shape", [b"", b"x", b"2x2", b"-1x", b"9" * 5000])
def test_f21_a_shape_that_is_none_counts_as_missing_even_where_the_checksum_fits(path, shape):
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1)})
    raw = sqlite3.connect(path)
    sealed = [shape, bioxfer.cache._checksum(key("A"), shape, value(1).tobytes())]
    raw.execute("UPDATE bioxfer_embedding_1 SET shape = ?, checksum = ?", sealed)
    raw.commit()
    raw.close()
    with EmbeddingCache(path) as cache:
        assert cache.get_many([key("A")]) == {}


def test_f21_a_row_under_a_foreign_key_counts_as_missing(path):
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1)})
    raw = sqlite3.connect(path)
    raw.execute("UPDATE bioxfer_embedding_1 SET key = ?", [key("B")])
    raw.commit()
    raw.close()
    with EmbeddingCache(path) as cache:
        assert cache.get_many([key("B")]) == {}


def test_f21_any_flipped_byte_or_cut_is_survived_without_a_wrong_value(tmp_path):
    values = {key(f"S{number}"): value(number, 700) for number in range(8)}
    good = tmp_path / "good.sqlite"
    with EmbeddingCache(good) as cache:
        cache.put_many(values)
    image = good.read_bytes()
    dice = random.Random(0)
    headers = [*range(0, 108, 3), *range(4096, 4140, 4)]
    damages = [(place, "flip") for place in headers]
    damages += [(dice.randrange(len(image)), "flip") for _ in range(30)]
    damages += [(dice.randrange(len(image)), "cut") for _ in range(8)]
    for number, (place, kind) in enumerate(damages):
        damaged = bytearray(image)
        damaged[place] ^= 1 << dice.randrange(8)
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(damaged if kind == "flip" else image[:place])
        with EmbeddingCache(path) as cache:
            for _ in range(2):
                for k, v in cache.get_many(values).items():
                    assert v.tobytes() == values[k].tobytes(), (place, kind)
                cache.put_many(values)


def test_f21_a_file_that_is_no_database_is_moved_aside_not_deleted(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 100)
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1)})
    aside = path.with_name("cache.sqlite.damaged-1")
    assert aside.read_bytes() == b"not a database at all" * 100
    assert str(aside) in caplog.text
    path.write_bytes(b"damaged again" * 100)
    EmbeddingCache(path).close()
    assert path.with_name("cache.sqlite.damaged-2").exists()
    assert aside.exists()


def test_f21_damage_met_while_open_is_mended(path, caplog):
    with EmbeddingCache(path) as cache:
        cache.put_many({key(f"S{number}"): value(number, 700) for number in range(50)})
    with EmbeddingCache(path) as cache:
        image = path.read_bytes()
        path.write_bytes(image[:4096] + b"\xff" * (len(image) - 4096))
        assert cache.get_many([key("S1")]) == {}
        cache.put_many({key("S1"): value(1)})
        np.testing.assert_array_equal(cache.get_many([key("S1")])[key("S1")], value(1))
    assert "damaged" in caplog.text


def test_a_database_of_another_program_is_refused_untouched(path):
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE bookmarks (title)")
    raw.commit()
    raw.close()
    before = path.read_bytes()
    with pytest.raises(OutputError, match="another program"):
        EmbeddingCache(path)
    assert path.read_bytes() == before


def test_an_unusable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="BIOXFER_CACHE"):
        EmbeddingCache(tmp_path / "file" / "cache.sqlite")
    with pytest.raises(OutputError, match="BIOXFER_CACHE"):
        EmbeddingCache(tmp_path)
    with pytest.raises(OutputError, match="--no-resume"):
        EmbeddingCache(tmp_path / ("x" * 300))  # no file system takes such a name


def test_a_read_only_folder_is_one_clear_error():
    from toys import open_folder, unprivileged  # with torch, which the children of this file do without

    with open_folder() as folder:
        folder.chmod(0o555)
        with unprivileged(), pytest.raises(OutputError, match="BIOXFER_CACHE"):
            EmbeddingCache(folder / "cache.sqlite")


def test_f23_a_full_disk_is_one_clear_error_and_finished_work_stays(path):
    with EmbeddingCache(path) as cache:
        cache.put_many({key("A"): value(1)})
    child = start_child("fill", path)
    told, _ = child.communicate(timeout=300)
    assert told.startswith("OutputError the cache")
    assert child.returncode == 0
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.get_many([key("A")])[key("A")], value(1))


def test_f20_a_kill_at_any_moment_keeps_every_committed_batch_and_no_half_one(path):
    dice = random.Random(1)
    for round_ in range(6):
        child = start_child("write", path, round_ * 1000)
        assert child.stdout is not None
        committed = [int(child.stdout.readline())]
        time.sleep(dice.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        committed += map(int, child.stdout.read().split())
        child.wait()
        child.stdout.close()
        with EmbeddingCache(path) as cache:
            for number in range(round_ * 1000, max(committed) + 3):
                found = cache.get_many(batch(number))
                assert len(found) in (0, 10)
                assert number not in committed or len(found) == 10
                for k, v in found.items():
                    np.testing.assert_array_equal(v, batch(number)[k])


def test_f24_two_writers_and_a_reader_all_end_right(path):
    starts = (0, 15, 30)  # the ranges overlap: some batches are written twice
    children = [start_child("write", path, start, 30) for start in starts]
    with EmbeddingCache(path) as cache:
        while any(child.poll() is None for child in children):
            for number in (0, 20, 40):
                assert len(cache.get_many(batch(number))) in (0, 10)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    with EmbeddingCache(path) as cache:
        assert len(cache) == 60 * 10
        for number in range(60):
            wanted = batch(number)
            found = cache.get_many(wanted)
            assert all(np.array_equal(found[k], v) for k, v in wanted.items())


def test_closing_twice_does_no_harm(path):
    cache = EmbeddingCache(path)
    cache.close()
    cache.close()


def test_default_path_honours_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BIOXFER_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_path() == tmp_path / "own" / "embeddings.sqlite"
    monkeypatch.delenv("BIOXFER_CACHE")
    assert default_cache_path() == tmp_path / "xdg" / "bioxfer" / "embeddings.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_path() == tmp_path / ".cache" / "bioxfer" / "embeddings.sqlite"


def start_child(*arguments: object) -> subprocess.Popen[str]:
    """Run this file as a program, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )


def batch(number: int) -> dict[bytes, np.ndarray]:
    """Ten values that are put in one transaction; 2,000 floats go onto overflow pages."""
    return {key(f"{number}-{place}"): value(number * 10 + place, 2000) for place in range(10)}


def write(path: str, start: str, count: str = "1000") -> None:
    """Commit batch after batch, telling each one's number once it is committed."""
    with EmbeddingCache(path) as cache:
        for number in range(int(start), int(start) + int(count)):
            cache.put_many(batch(number))
            print(number, flush=True)


def fill(path: str) -> None:
    """Write beyond what the process may write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    cache = EmbeddingCache(path)
    try:
        for number in range(100):
            cache.put_many(batch(number))
    except OutputError as error:
        print("OutputError", error)


if __name__ == "__main__":
    {"write": write, "fill": fill}[sys.argv[1]](*sys.argv[2:])
