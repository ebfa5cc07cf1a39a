"""Embedding is row-complete, context-free, resumable and honest about what it could not do."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bioxfer.embedding
import bioxfer.engine
from bioxfer.backbones import Representation
from bioxfer.backbones.compact import random_backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import POOLS, embed, embed_records, parse_pool, resolve_layer
from bioxfer.errors import InputError, ModelError, SequenceError, UsageError
from bioxfer.pooling import pool_residues
from bioxfer.sequences import RESIDUES, SequenceRecord
from bioxfer.windows import stitch_windows, window_starts

PACKAGE = str(Path(bioxfer.embedding.__file__).parents[1])
DIM = 6


class Toy:
    """A backbone whose vectors are known: of a residue, its neighbour and its place."""

    name, dim, n_layers, precision, fingerprint = "toy", DIM, 3, "fp32", "0123456789abcdef"

    def __init__(self, *, window: int = 50) -> None:
        self.window = window
        self.calls: list[list[str]] = []
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(128, DIM, generator=generator)

    def one(self, sequence: str, layer: int) -> Representation:
        letters = self.table[torch.tensor([ord(letter) for letter in sequence])]
        x = letters + 0.5 * letters.roll(1, 0) + 0.01 * torch.arange(len(sequence)).unsqueeze(1) + layer
        return Representation(residues=x[None], cls=x[:1] + 7)

    def represent(self, sequences: Sequence[str], *, layers: Sequence[int]) -> list[Representation]:
        self.calls.append(list(sequences))
        (layer,) = layers
        return [self.one(sequence, layer) for sequence in sequences]


class Rounding(Toy):
    """Rounds in another way with each composition of the batch, as real matrix products do."""

    def represent(self, sequences, *, layers):
        found = super().represent(sequences, layers=layers)
        noise = 1e-6 * (len(sequences) + sum(map(len, sequences)) % 7)
        return [Representation(residues=part.residues + noise, cls=part.cls) for part in found]


def records(*sequences: str) -> list[SequenceRecord]:
    return [
        SequenceRecord(f"id {n}/é", sequence, source="in.faa", line=2 * n + 1)
        for n, sequence in enumerate(sequences)
    ]


def proteins(count: int, *, seed: int = 0, longest: int = 45) -> list[SequenceRecord]:
    dice = random.Random(seed)
    return records(*("".join(dice.choices(RESIDUES, k=dice.randint(1, longest))) for _ in range(count)))


def vectors(rows, pool: str = "mean") -> np.ndarray:
    return np.stack([row.vector(pool) for row in rows])


# Contracts 1 to 3: rows, residues, context.


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(st.text(alphabet="ACDkX*J7<>ß", max_size=30), max_size=12),
    batch_tokens=st.integers(1, 80),
    chunk=st.integers(1, 8),
)
def test_f17_every_record_gives_one_row_in_order_that_no_neighbour_changes(sequences, batch_tokens, chunk):
    given_ = records(*sequences)
    toy = Toy(window=20)
    rows = list(
        embed_records(
            given_,
            toy,
            pools=["mean", "max"],
            per_residue=True,
            batch_tokens=batch_tokens,
            chunk=chunk,
        )
    )
    assert [row.record for row in rows] == given_
    for row, record in zip(rows, given_, strict=True):
        (alone,) = embed_records([record], Toy(window=20), pools=["mean", "max"], per_residue=True)
        assert (row.length, row.status, row.message) == (alone.length, alone.status, alone.message)
        if row.pooled is None:
            assert row.status == "skipped"
            assert alone.pooled is None
            assert row.length == 0
        else:
            np.testing.assert_array_equal(row.vector("mean+max"), alone.vector("mean+max"))
            assert row.residues.shape == (row.length, DIM)
            np.testing.assert_array_equal(row.residues, alone.residues)
    for call in toy.calls:
        assert len(call) == 1 or sum(len(fragment) + 2 for fragment in call) <= batch_tokens


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp32", 1e-5), ("bf16", 2e-2)],  # measured: 8e-7 and 5e-3, the latter at 6 layers
)
def test_f17_a_real_backbone_is_context_free(precision, tolerance):
    backbone = random_backbone(width=128, layers=4, window=60, precision=precision)
    given_ = proteins(20, longest=120)
    options = {"pools": POOLS, "per_residue": True}
    alone = [next(embed_records([record], backbone, **options)) for record in given_]
    shuffled = random.Random(0).sample(given_, len(given_))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        together = list(embed_records(shuffled + given_[:3], backbone, batch_tokens=700, **options))
    finally:
        torch.set_num_threads(threads)
    found = {row.record.id: row for row in together}
    for row in alone:
        other = found[row.record.id]
        assert other.residues.shape == (row.length, 128)
        assert relative_error(other.residues, row.residues) <= tolerance
        for pool in POOLS:
            assert relative_error(other.pooled[pool], row.pooled[pool]) <= tolerance


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_f7_a_sequence_is_computed_once_for_all_its_ids():
    toy = Toy()
    rows = list(embed_records(records("MKV", "mkv*", "GAVL", "MKV"), toy))
    assert sorted(itertools.chain(*toy.calls)) == ["GAVL", "MKV"]
    assert [row.status for row in rows] == ["ok"] * 4
    np.testing.assert_array_equal(rows[0].pooled["mean"], rows[3].pooled["mean"])
    assert rows[1].message == "one final * removed"
    rows[0].pooled["mean"][:] = 0  # rows of one sequence do not share memory
    assert rows[3].pooled["mean"].any()


def test_f7_with_a_cache_a_sequence_is_computed_once_for_all_chunks(tmp_path):
    toy = Toy()
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        rows = list(embed_records(records("MKV", "GAVL", "MKV"), toy, cache=cache, chunk=1))
    assert toy.calls == [["MKV"], ["GAVL"]]
    np.testing.assert_array_equal(rows[0].pooled["mean"], rows[2].pooled["mean"])


def test_records_are_read_as_they_are_needed():
    read = []

    def source():
        for record in proteins(10):
            read.append(record)
            yield record

    rows = embed_records(source(), Toy(), chunk=3)
    assert read == []
    next(rows)
    assert len(read) == 3


def test_reading_ahead_changes_no_row_and_stays_within_a_chunk():
    given_ = proteins(60)
    whole = list(embed_records(given_, Toy(), chunk=7))
    read = []
    rows = embed_records((read.append(r) or r for r in given_), Toy(), chunk=7, ahead=True)
    first = next(rows)
    time.sleep(0.02)
    assert 7 <= len(read) <= 7 + 7 + 1
    found = [first, *rows]
    assert [row.record for row in found] == given_
    np.testing.assert_array_equal(vectors(found), vectors(whole))
    rows = embed_records(given_, Toy(), chunk=7, ahead=True)
    next(rows)
    rows.close()
    with pytest.raises(SequenceError, match="holds gaps"):
        list(embed_records(records("MKV", "M-V"), Toy(), ahead=True))
    assert "bioxfer-reader" not in {thread.name for thread in threading.enumerate()}


def test_per_residue_chunks_end_before_memory_does(monkeypatch):
    given_ = proteins(30)
    whole = list(embed_records(given_, Toy(), per_residue=True))
    monkeypatch.setattr(bioxfer.embedding, "_MATRIX_VALUES", 60 * DIM)
    read = []
    rows = embed_records((read.append(r) or r for r in given_), Toy(), per_residue=True)
    first = next(rows)
    assert 60 <= sum(len(record.sequence) for record in read) < 60 + 45
    for row, wanted in zip([first, *rows], whole, strict=True):
        np.testing.assert_array_equal(row.residues, wanted.residues)


def test_progress_counts_every_record_once():
    given_ = [*proteins(20), *records("", "MKV", "MKV", "")]
    told: list[int] = []
    list(embed_records(given_, Toy(), batch_tokens=64, chunk=9, progress=told.append))
    assert sum(told) == len(given_)
    assert min(told) >= 1
    assert len(told) > 3


# What a single row can say.


def test_empty_and_invalid_sequences_keep_their_rows():
    empty, invalid = list(embed_records(records("", "MJKV"), Toy()))
    assert (empty.status, empty.length, empty.pooled) == ("skipped", 0, None)
    assert "empty" in empty.message
    assert (invalid.status, invalid.length) == ("ok", 4)
    assert "became X" in invalid.message
    (skipped,) = embed_records(records("MJKV"), Toy(), on_invalid="skip")
    assert (skipped.status, skipped.pooled) == ("skipped", None)
    with pytest.raises(SequenceError, match="line 1"):
        list(embed_records(records("MJKV"), Toy(), on_invalid="error"))
    with pytest.raises(SequenceError, match="--degap"):
        list(embed_records(records("MK-V"), Toy()))
    (degapped,) = embed_records(records("MK-V"), Toy(), degap=True)
    assert degapped.length == 3


def test_f11_special_tokens_in_a_sequence_are_characters():
    (row,) = embed_records(records("MK<mask>V"), Toy(), per_residue=True)
    assert row.length == len(row.residues) == 9


def test_f13_nucleotides_are_warned_of_once_and_in_each_row(caplog):
    with caplog.at_level(logging.WARNING, logger="bioxfer"):
        rows = list(embed_records(records("ACGT" * 10, "MKVLAW" * 5, "ACGU" * 10), Toy()))
    assert ["--translate" in row.message for row in rows] == [True, False, True]
    assert [row.status for row in rows] == ["ok"] * 3
    assert len(caplog.records) == 1
    assert "--translate" in caplog.text


# Long proteins.


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 400), window=st.integers(2, 60), share=st.floats(0, 0.5))
def test_windows_cover_the_protein_and_stitch_to_it(length, window, share):
    overlap = int(window * share)
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    if length <= window:
        assert starts == (0,)
        return
    assert starts[-1] + window == length
    assert all(before + window - after >= overlap for before, after in itertools.pairwise(starts))
    assert len(starts) == 1 + -(-(length - window) // (window - overlap))
    whole = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
    parts = [whole[start : start + window] for start in starts]
    # Weights that sum to 1 give back what all windows agree on.
    torch.testing.assert_close(stitch_windows(parts, starts), whole, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 300), window=st.integers(2, 60), share=st.floats(0, 0.5), data=st.data())
def test_a_stitched_residue_lies_between_what_its_windows_say(length, window, share, data):
    starts = window_starts(length, window, int(window * share))
    window = min(window, length)
    said = data.draw(st.lists(st.integers(-9, 9), min_size=len(starts), max_size=len(starts)))
    parts = [torch.full((window, 1), float(number)) for number in said]
    stitched = stitch_windows(parts, starts)[:, 0].tolist()
    assert len(stitched) == length
    for place, value in enumerate(stitched):
        heard = [n for n, start in zip(said, starts, strict=True) if start <= place < start + window]
        assert min(heard) - 1e-5 <= value <= max(heard) + 1e-5
        if len(heard) == 1:
            assert value == pytest.approx(heard[0], abs=1e-5)
    # a line that all windows see parts of is whole again
    line = torch.arange(length, dtype=torch.float32)[:, None]
    torch.testing.assert_close(
        stitch_windows([line[start : start + window] for start in starts], starts), line, rtol=1e-5, atol=1e-4
    )


@given(costs=st.lists(st.integers(1, 50)), most=st.integers(1, 60))
def test_batches_hold_each_item_once_in_order_and_no_more_than_they_may(costs, most):
    items = list(enumerate(costs))
    batches = list(bioxfer.engine._batches(items, lambda item: item[1], most))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == 1 or sum(cost for _, cost in batch) <= most for batch in batches)
    # none could have taken the first of the next
    for batch, following in itertools.pairwise(batches):
        assert sum(cost for _, cost in batch) + following[0][1] > most


def test_neighbouring_windows_are_cross_faded_in_a_straight_line():
    left, right = torch.zeros(6, 1), torch.ones(6, 1)
    stitched = stitch_windows([left, right], [0, 3])
    assert stitched[:, 0].tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_f14_titin_is_windowed_and_says_so():
    titin = "".join(random.Random(0).choices(RESIDUES, k=35_213))
    toy = Toy(window=1022)
    long, short = embed_records(records(titin, "MKV"), toy, per_residue=True)
    assert (long.length, long.status) == (35_213, "windowed")
    assert long.message == "windowed: 46 windows of 1022, overlap 262"
    assert long.residues.shape == (35_213, DIM)
    assert np.isfinite(long.residues).all()
    assert short.status == "ok"
    assert max(sum(map(len, call)) for call in toy.calls) <= 4096  # memory is bounded
    assert {len(fragment) for call in toy.calls for fragment in call} == {3, 1022}
    # In the middle of the first window, where no other reaches, nothing is blended.
    np.testing.assert_array_equal(long.residues[:700], toy.one(titin[:1022], 3).residues[0][:700])


def test_f15_pooling_is_done_in_fp32():
    half = torch.full((35_000, 2), 2.0, dtype=torch.float16)
    for pool in POOLS:
        pooled = pool_residues(half, half[0], pool)
        assert pooled.dtype == torch.float32
        assert pooled.tolist() == [2, 2]


def test_truncate_skip_and_error():
    sequence = "".join(random.Random(0).choices("ACDEFG", k=120))
    (cut,) = embed_records(records(sequence), Toy(), long="truncate", per_residue=True)
    assert (cut.status, cut.length, len(cut.residues)) == ("truncated", 120, 50)
    assert "first 50 of 120" in cut.message
    (fragment,) = embed_records(records(sequence[:50]), Toy())
    np.testing.assert_array_equal(cut.pooled["mean"], fragment.pooled["mean"])
    (skipped,) = embed_records(records(sequence), Toy(), long="skip")
    assert (skipped.status, skipped.pooled) == ("skipped", None)
    assert "120 residues exceed the window of 50" in skipped.message
    with pytest.raises(SequenceError, match=r"in\.faa, line 1.*120.*50.*--long"):
        list(embed_records(records(sequence), Toy(), long="error"))
    for long in ("window", "truncate", "skip", "error"):
        (row,) = embed_records(records(sequence[:50]), Toy(), long=long)
        assert (row.status, row.message) == ("ok", "")


# What can go wrong in a backbone.


class Poisoned(Toy):
    """Gives a number that is not finite for one sequence, the first `times` times."""

    def __init__(self, target: str, times: float, bad: float = float("nan")) -> None:
        super().__init__()
        self.target, self.times, self.bad = target, times, bad

    def represent(self, sequences, *, layers):
        found = super().represent(sequences, layers=layers)
        if self.target in sequences and self.times > 0:
            self.times -= 1
            found[sequences.index(self.target)].residues[0, 1, 2] = self.bad
        return found


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("pool", ["mean", "max", "cls", "start"])
def test_f16_a_result_that_stays_not_finite_fails_its_row_alone(bad, pool):
    given_ = records("MKVLAW", "GAVLIM", "CCCDDD")
    poisoned = Poisoned("GAVLIM", float("inf"), bad)
    rows = list(embed_records(given_, poisoned, pools=[pool]))
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert "not finite" in rows[1].message
    assert rows[1].pooled is None
    assert poisoned.calls[-1] == ["GAVLIM"]  # retried alone
    healthy = list(embed_records(given_, Toy(), pools=[pool]))
    for place in (0, 2):
        np.testing.assert_array_equal(rows[place].pooled[pool], healthy[place].pooled[pool])


def test_f16_a_result_that_is_finite_the_second_time_is_used_and_told():
    given_ = records("MKVLAW", "GAVLIM")
    rows = list(embed_records(given_, Poisoned("GAVLIM", 1)))
    assert rows[1].status == "ok"
    assert "in fp32" in rows[1].message
    np.testing.assert_array_equal(vectors(rows), vectors(embed_records(given_, Toy())))


def test_f16_half_precision_is_retried_in_fp32():
    given_ = records("MKVLAW", "GAVLIM")
    loaded = []
    half = Poisoned("GAVLIM", float("inf"))
    half.precision = "bf16"

    def twin():
        loaded.append(Toy())
        return loaded[-1]

    rows = list(embed_records(given_, half, fp32=twin))
    assert [row.status for row in rows] == ["ok", "ok"]
    assert [toy.calls for toy in loaded] == [[["GAVLIM"]]]
    np.testing.assert_array_equal(vectors(rows), vectors(embed_records(given_, Toy())))
    rows = list(embed_records(given_, half))
    assert [row.status for row in rows] == ["ok", "failed"]
    assert "precision fp32" in rows[1].message


def test_f16_what_failed_is_tried_again_by_the_next_run(tmp_path):
    given_ = records("MKVLAW", "GAVLIM")
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        rows = list(embed_records(given_, Poisoned("GAVLIM", 2), cache=cache))
        assert rows[1].status == "failed"
        assert len(cache) == 1
        assert [row.status for row in embed_records(given_, Toy(), cache=cache)] == ["ok", "ok"]


class Tight(Toy):
    """Runs out of memory with more than so many residues."""

    def __init__(self, most: int, error: type[Exception] = MemoryError, text: str = "") -> None:
        super().__init__()
        self.most, self.error, self.text = most, error, text

    def represent(self, sequences, *, layers):
        if sum(map(len, sequences)) > self.most:
            raise self.error(self.text)
        return super().represent(sequences, layers=layers)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError, ""),
        (torch.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_f19_a_batch_that_exceeds_memory_is_halved_and_order_kept(error, text, caplog):
    given_ = proteins(30)
    with caplog.at_level(logging.WARNING, logger="bioxfer"):
        rows = list(embed_records(given_, Tight(100, error, text)))
    assert [row.record for row in rows] == given_
    assert {row.status for row in rows} == {"ok"}
    np.testing.assert_array_equal(vectors(rows), vectors(embed_records(given_, Toy())))
    assert "out of memory" in caplog.text


def test_f19_a_protein_that_alone_exceeds_memory_fails_its_row_alone():
    rows = list(embed_records(records("M" * 10, "M" * 45, "M" * 12), Tight(40)))
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert "out of memory" in rows[1].message


def test_other_errors_of_a_backbone_rise():
    with pytest.raises(RuntimeError, match="a bug"):
        list(embed_records(proteins(3), Tight(0, RuntimeError, "a bug")))


def test_a_backbone_that_loses_a_residue_is_refused():
    class Lossy(Toy):
        def one(self, sequence, layer):
            return super().one(sequence[1:], layer)

    with pytest.raises(ModelError, match="4 representations for 5 residues"):
        list(embed_records(records("MKVLA"), Lossy()))


# Contract 5: cache and resume.


class Interrupted(Rounding):
    """Is interrupted at its n-th batch."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed = allowed

    def represent(self, sequences, *, layers):
        if len(self.calls) == self.allowed:
            raise KeyboardInterrupt
        return super().represent(sequences, layers=layers)


def test_f20_an_interrupted_run_resumes_to_the_same_bits_and_does_no_work_twice(tmp_path):
    given_ = [*proteins(40, longest=140), *records("", "MKV")]
    options = {"pools": ["mean+cls"], "per_residue": True, "batch_tokens": 200, "chunk": 15}
    with EmbeddingCache(tmp_path / "whole.sqlite") as cache:
        backbone = Rounding()
        whole = list(embed_records(given_, backbone, cache=cache, **options))
    total = len(backbone.calls)
    assert total > 10
    for allowed in range(total):
        with EmbeddingCache(tmp_path / f"{allowed}.sqlite") as cache:
            first = Interrupted(allowed)
            with pytest.raises(KeyboardInterrupt):
                list(embed_records(given_, first, cache=cache, **options))
            second = Rounding()
            resumed = list(embed_records(given_, second, cache=cache, **options))
        # Only the windows of one protein, which is kept when it is whole, may be run again.
        assert total <= len(first.calls) + len(second.calls) <= total + 1
        for row, wanted in zip(resumed, whole, strict=True):
            assert (row.record, row.status, row.message) == (wanted.record, wanted.status, wanted.message)
            if wanted.pooled is not None:
                assert row.vector("mean+cls").tobytes() == wanted.vector("mean+cls").tobytes()
                assert row.residues.tobytes() == wanted.residues.tobytes()


def test_f20_resume_after_sigkill_is_bit_identical(tmp_path):
    given_ = proteins(60)
    with EmbeddingCache(tmp_path / "whole.sqlite") as cache:
        whole = vectors(embed_records(given_, Rounding(), batch_tokens=100, cache=cache))
    path = tmp_path / "killed.sqlite"
    dice = random.Random(2)
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, __file__, path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PACKAGE},
        )
        child.stdout.readline()
        time.sleep(dice.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
    with EmbeddingCache(path) as cache:
        kept = len(cache)
        backbone = Rounding()
        resumed = vectors(embed_records(given_, backbone, batch_tokens=100, cache=cache))
    assert resumed.tobytes() == whole.tobytes()
    assert 0 < kept < 60
    assert sum(map(len, backbone.calls)) == 60 - kept


def test_a_second_run_computes_nothing(tmp_path):
    given_ = proteins(20, longest=140)
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        first = list(embed_records(given_, Toy(), pools=["mean", "max"], cache=cache))
        idle = Toy()
        second = list(embed_records(given_[::-1], idle, pools=["max"], cache=cache))
    assert idle.calls == []
    np.testing.assert_array_equal(vectors(second, "max"), vectors(first[::-1], "max"))
    assert [row.message for row in second] == [row.message for row in first[::-1]]


def test_f21_a_damaged_value_is_computed_again(tmp_path):
    given_ = proteins(10)
    path = tmp_path / "c.sqlite"
    with EmbeddingCache(path) as cache:
        whole = vectors(embed_records(given_, Toy(), cache=cache))
    raw = sqlite3.connect(path)
    raw.execute("UPDATE bioxfer_embedding_1 SET data = zeroblob(length(data)) WHERE rowid = 4")
    raw.commit()
    raw.close()
    with EmbeddingCache(path) as cache:
        backbone = Toy()
        np.testing.assert_array_equal(vectors(embed_records(given_, backbone, cache=cache)), whole)
    assert sum(map(len, backbone.calls)) == 1


def test_f22_every_change_of_settings_gives_the_right_results(tmp_path):
    given_ = proteins(8, longest=140)

    def toy(**changes):
        backbone = Toy(window=changes.pop("window", 50))
        for name, value in changes.items():
            setattr(backbone, name, value)
        return backbone

    def other():
        backbone = toy(fingerprint="another backbone")
        backbone.table = backbone.table * 2
        return backbone

    runs = [
        (given_, toy, {}),
        (given_[4:] + proteins(4, seed=1), toy, {}),
        (given_, other, {}),
        (given_, lambda: toy(precision="bf16"), {}),
        (given_, lambda: toy(window=40), {}),
        (given_, toy, {"layer": 1}),
        (given_, toy, {"pools": ["max"]}),
        (given_, toy, {"pools": ["start", "end", "cls"]}),
        (given_, toy, {"overlap": 20}),
        (given_, toy, {"long": "truncate"}),
        (given_, toy, {"long": "skip"}),
        (given_, toy, {"per_residue": True}),
    ]
    for number, (first, second) in enumerate(itertools.permutations(runs, 2)):
        with EmbeddingCache(tmp_path / f"{number}.sqlite") as cache:
            for source, make, options in (first, second):
                found = list(embed_records(source, make(), cache=cache, **options))
                plain = list(embed_records(source, make(), **options))
                for row, wanted in zip(found, plain, strict=True):
                    assert (row.status, row.message) == (wanted.status, wanted.message)
                    assert (row.pooled is None) == (wanted.pooled is None)
                    if wanted.pooled is not None:
                        assert row.pooled.keys() == wanted.pooled.keys()
                        for name, vector in wanted.pooled.items():
                            np.testing.assert_array_equal(row.pooled[name], vector)
                    if wanted.residues is not None:
                        np.testing.assert_array_equal(row.residues, wanted.residues)


def test_matrices_alone_can_be_asked_for_and_cached(tmp_path):
    given_ = proteins(5, longest=140)
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        for backbone in (Toy(), Tight(0)):
            rows = list(embed_records(given_, backbone, pools=(), per_residue=True, cache=cache))
            assert [row.residues.shape for row in rows] == [(len(r.sequence), DIM) for r in given_]
            assert [row.pooled for row in rows] == [{}] * 5


# Options.


def test_poolings_are_what_they_say():
    (row,) = embed_records(
        records("".join(random.Random(0).choices("ACDEFG", k=45))), Toy(), pools=POOLS, per_residue=True
    )
    x = row.residues
    wanted = {
        "mean": x.mean(0),
        "max": x.max(0),
        "start": x[:32].mean(0),
        "end": x[-32:].mean(0),
        "cls": x[0] + 7,
    }
    assert row.pooled.keys() == wanted.keys()
    for name, vector in wanted.items():
        np.testing.assert_allclose(row.pooled[name], vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        row.vector("max+mean"), np.concatenate([row.pooled["max"], row.pooled["mean"]])
    )


def test_layers_count_from_the_embedding_or_from_the_last():
    toy = Toy()
    assert [resolve_layer(toy, layer) for layer in (None, 0, 3, -1, -4)] == [3, 0, 3, 3, 0]
    (bottom,), (top,) = (embed_records(records("MKV"), toy, layer=layer) for layer in (0, -1))
    np.testing.assert_allclose(top.pooled["mean"] - bottom.pooled["mean"], 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 4}, "no layer 4; choose 0"),
        ({"layer": -5}, "no layer -5"),
        ({"pools": ["avg"]}, "'avg'.*choose mean, max, cls"),
        ({"pools": ["mean+mean"]}, "twice"),
        ({"pools": []}, "nothing is asked for"),
        ({"long": "cut"}, "'cut'; choose window"),
        ({"overlap": 26}, "26.*choose 0 to 25"),
        ({"overlap": -1}, "-1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"chunk": 0}, "chunk 0"),
    ],
)
def test_options_out_of_range_are_refused_at_the_call(options, words):
    with pytest.raises(UsageError, match=words):
        embed_records([], Toy(), **options)


def test_parse_pool_keeps_the_order():
    assert parse_pool("max+mean") == ("max", "mean")


# The notebook's face.


def test_embed_takes_sequences_records_and_files(tmp_path):
    fasta = tmp_path / "in.faa"
    fasta.write_text(">seq1 first\nMKV\n>seq2\nGAVL\n")
    toy = Toy()
    from_file = embed(fasta, model=toy)
    from_text = embed(["MKV", "GAVL"], model=toy)
    from_records = embed(iter([SequenceRecord("seq1", "MKV"), "GAVL"]), model=toy)
    for found in (from_file, from_text, from_records, embed(str(fasta), model=toy)):
        assert found.ids == ["seq1", "seq2"]
        assert found.vectors.shape == (2, DIM)
        assert found.vectors.dtype == np.float32
        np.testing.assert_array_equal(found.vectors, from_file.vectors)
    with pytest.raises(InputError):
        embed(tmp_path / "absent.faa", model=toy)


def test_embeddings_say_what_they_are_and_mark_missing_rows():
    found = embed(["MKV", "", "GAVL" * 20], model=Toy(), pool="mean+max", layer=-1, per_residue=True)
    assert len(found) == 3
    assert found.vectors.shape == (3, 2 * DIM)
    assert np.isnan(found.vectors[1]).all()
    assert np.isfinite(found.vectors[[0, 2]]).all()
    assert found.statuses == ["ok", "skipped", "windowed"]
    assert found.lengths == [3, 0, 80]
    assert (found.model, found.layer, found.pool, found.fingerprint) == (
        "toy",
        3,
        "mean+max",
        Toy.fingerprint,
    )
    assert [None if x is None else x.shape for x in found.residues] == [(3, DIM), None, (80, DIM)]
    assert repr(found) == "<Embeddings 3 × 12, toy, layer 3, mean+max, 1 skipped, 1 windowed>"
    assert embed([], model=Toy()).vectors.shape == (0, DIM)
    assert embed(["MKV"], model=Toy()).residues is None


def test_table_keeps_ids_verbatim_and_names_dimensions():
    ids = ["NA", "007", "1e5", "a/b", ""]
    found = embed([SequenceRecord(id_, "MKV") for id_ in ids], model=Toy(), pool="cls+mean")
    table = found.to_pandas()
    assert table["id"].tolist() == ids
    assert list(table.columns[:6]) == ["id", "length", "status", "message", "cls_0", "cls_1"]
    assert table.columns[-1] == f"mean_{DIM - 1}"
    np.testing.assert_array_equal(table.iloc[:, 4:].to_numpy(), found.vectors)
    assert (table.dtypes.iloc[4:] == np.float32).all()
    empty = embed([], model=Toy()).to_pandas()
    assert empty.shape == (0, 4 + DIM)


def test_embed_loads_by_name_and_hands_over_the_fp32_twin(monkeypatch):
    asked = []

    def load(name, *, precision, device, offline, threads=None):
        asked.append((name, precision, device, offline, threads))
        backbone = Poisoned("GAVL", float("inf")) if precision == "bf16" else Toy()
        backbone.precision = precision
        return backbone

    monkeypatch.setattr(bioxfer.embedding, "load_backbone", load)
    found = embed(["MKV", "GAVL"], model="toy", precision="bf16", threads=1, offline=True)
    assert asked == [("toy", "bf16", "cpu", True, 1), ("toy", "fp32", "cpu", True, None)]
    assert found.statuses == ["ok", "ok"]
    asked.clear()
    embed(["MKV"], model=Path("weights.safetensors"))
    assert asked == [("weights.safetensors", "fp32", "cpu", False, None)]


def test_embed_takes_a_cache_or_its_path(tmp_path):
    path = tmp_path / "c.sqlite"
    toy = Toy()
    first = embed(["MKV"], model=toy, cache=path)
    with EmbeddingCache(path) as cache:
        second = embed(["MKV"], model=toy, cache=cache)
        assert len(cache) == 1  # still open
    assert toy.calls == [["MKV"]]
    np.testing.assert_array_equal(first.vectors, second.vectors)


class Slow(Rounding):
    """Tells of each batch and takes its time."""

    def represent(self, sequences, *, layers):
        print("batch", flush=True)
        time.sleep(0.03)
        return super().represent(sequences, layers=layers)


if __name__ == "__main__":
    with EmbeddingCache(sys.argv[1]) as opened:
        list(embed_records(proteins(60), Slow(), batch_tokens=100, cache=opened))
