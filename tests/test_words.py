"""The word memory: relatives are known, strangers are not, and a file is checked before it is believed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bioxfer.errors import HeadFileError, UsageError
from bioxfer.words import WordMemory

ALPHABET = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
N_CLASSES = 40


def natural(rng, length):
    return "".join(rng.choice(ALPHABET, size=length))


def mutate(rng, sequence, share):
    residues = np.array(list(sequence))
    hit = rng.choice(len(residues), size=round(share * len(residues)), replace=False)
    residues[hit] = rng.choice(ALPHABET, size=len(hit))
    return "".join(residues)


@pytest.fixture(scope="module")
def families():
    """40 ancestors, and 6 training proteins of each at about 72% identity to it."""
    rng = np.random.default_rng(3)
    ancestors = [natural(rng, int(rng.integers(150, 400))) for _ in range(N_CLASSES)]
    sequences = [mutate(rng, ancestor, 0.3) for ancestor in ancestors for _ in range(6)]
    return ancestors, sequences, np.repeat(np.arange(N_CLASSES), 6)


@pytest.fixture(scope="module")
def memory(families):
    return WordMemory.fit(families[1], families[2], n_classes=N_CLASSES)


def test_relatives_are_known_and_strangers_are_not(families, memory):
    rng = np.random.default_rng(4)
    relatives = [mutate(rng, ancestor, 0.4) for ancestor in families[0]]
    strangers = [natural(rng, 300) for _ in range(200)]
    known, unknown = memory.votes_of_all(relatives), memory.votes_of_all(strangers)
    assert known.dtype == np.float32
    assert known.shape == (N_CLASSES, N_CLASSES)
    assert (known.argmax(axis=1) == np.arange(N_CLASSES)).mean() >= 0.95
    assert np.median(known.max(axis=1)) > 3 * np.quantile(unknown.max(axis=1), 0.95)
    assert abs(unknown.mean()) < 0.2


def test_length_alone_is_no_evidence(memory):
    rng = np.random.default_rng(5)
    long, short = memory.votes(natural(rng, 20_000)), memory.votes(natural(rng, 100))
    assert abs(long.mean()) < 0.8
    assert abs(short.mean()) < 0.3


def test_a_protein_alone_is_as_among_others(families, memory):
    together = memory.votes_of_all(families[1][:50])
    for place in (0, 17, 49):
        np.testing.assert_array_equal(memory.votes(families[1][place]), together[place])


def test_pieces_change_nothing(families, memory, monkeypatch):
    whole = memory.votes_of_all(families[1])
    monkeypatch.setattr("bioxfer.words._RESIDUES_AT_ONCE", 700)
    monkeypatch.setattr("bioxfer.words._PAIRS_AT_ONCE", 50)
    np.testing.assert_allclose(memory.votes_of_all(families[1]), whole, rtol=1e-5, atol=1e-5)
    again = WordMemory.fit(families[1], families[2], n_classes=N_CLASSES)
    np.testing.assert_array_equal(again.codes, memory.codes)


def test_the_order_of_the_training_proteins_does_not_matter(families, memory):
    order = np.random.default_rng(6).permutation(len(families[1]))
    other = WordMemory.fit(
        [families[1][i] for i in order], families[2][order], n_classes=N_CLASSES, pairs=2_600_000
    )
    for name, tensor in memory.to_tensors().items():
        np.testing.assert_array_equal(other.to_tensors()[name], tensor, err_msg=name)


def test_nothing_depends_on_the_hash_seed():
    code = (
        "import hashlib; from bioxfer.words import WordMemory; "
        "m = WordMemory.fit(['MKTAYIAKQRQISFVKSHFSRQ', 'GGSWWPPEEDDKKLLMMNNAAC'], [0, 1], n_classes=2); "
        "print(hashlib.sha256(b''.join(t.tobytes() for t in m.to_tensors().values())).hexdigest())"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(shown) == 1


def test_the_size_is_bounded_and_shared_fairly(families):
    small = WordMemory.fit(families[1], families[2], n_classes=N_CLASSES, pairs=4000)
    bits = 16 - (N_CLASSES - 1).bit_length()
    counts = np.bincount(small.codes >> bits, minlength=N_CLASSES)
    assert 3900 <= len(small.codes) <= 4000
    assert counts.min() >= 60
    assert counts.max() <= 140


def test_least_keeps_no_word_of_one_protein():
    rng = np.random.default_rng(8)
    alone, family = natural(rng, 200), natural(rng, 200)
    sequences = [alone, family, mutate(rng, family, 0.1), family[::-1]]
    memory = WordMemory.fit(sequences, [0, 1, 1, 1], n_classes=2, least=2)
    assert not ((memory.codes >> 15) == 0).any()
    assert len(memory.codes)
    votes = memory.votes(alone)
    assert votes[0] == 0
    assert memory.votes(family).argmax() == 1


def test_repeats_inside_one_protein_are_one_witness():
    rng = np.random.default_rng(9)
    unit = natural(rng, 30)
    memory = WordMemory.fit([unit * 5, natural(rng, 100)], [0, 1], n_classes=2, least=2)
    assert not len(memory.codes)


def test_case_is_ignored_and_strange_letters_break_words(families, memory):
    protein = families[1][0]
    np.testing.assert_array_equal(memory.votes(protein.lower()), memory.votes(protein))
    for strange in ("X" * 300, "-" * 50, "É" * 40, "", "MKT"):
        assert not memory.votes(strange).any()
    broken = protein[:60] + "X" + protein[60:]
    assert memory.votes(broken).argmax() == 0


def test_no_proteins_give_no_rows(memory):
    assert memory.votes_of_all([]).shape == (0, N_CLASSES)


def test_tensors_bring_the_memory_back(families, memory):
    tensors = memory.to_tensors()
    back = WordMemory.from_tensors(tensors)
    np.testing.assert_array_equal(back.votes_of_all(families[1][:20]), memory.votes_of_all(families[1][:20]))
    assert back.n_classes == N_CLASSES
    assert tensors["codes"].dtype == np.uint16


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("codes", lambda t: None, "lacks 'codes'"),
        ("codes", lambda t: t[:-1], "'codes' of the word memory holds"),
        ("codes", lambda t: t.astype(np.int64), "int64"),
        ("codes", lambda t: t | np.uint16(0xFC00), "beyond the 40"),
        ("sizes", lambda t: t[:-1], "'sizes' of the word memory holds"),
        ("sizes", lambda t: t.astype(np.float32), "float32 sizes"),
        ("means", lambda t: t * np.float32(np.nan), "NaN or infinity"),
        ("means", lambda t: t[:0], "0 classes"),
        ("shares", lambda t: -t, "not positive"),
        ("variances", lambda t: -t, "not positive"),
        ("means", lambda t: t[None], "'means' of the word memory is"),
    ],
)
def test_damaged_tensors_are_refused(memory, name, change, said):
    tensors = memory.to_tensors()
    changed = change(tensors[name])
    tensors = {key: value for key, value in tensors.items() if key != name}
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(HeadFileError, match=said):
        WordMemory.from_tensors(tensors)


@pytest.mark.parametrize(
    ("numbers", "options", "said"),
    [
        ([0], {"n_classes": 2}, "do not fit 2 proteins"),
        ([0, 2], {"n_classes": 2}, "class number 2"),
        ([0, -1], {"n_classes": 2}, "class number -1"),
        ([0, 1], {"n_classes": 0}, "n_classes 0"),
        ([0, 1], {"n_classes": 40_000}, "n_classes 40000"),
        ([0, 1], {"n_classes": 2, "pairs": 1}, "pairs 1"),
        ([0, 1], {"n_classes": 2, "least": 0}, "least 0"),
    ],
)
def test_wrong_options_are_named(numbers, options, said):
    with pytest.raises(UsageError, match=said):
        WordMemory.fit(["MKTAYIAKQRQISFVK", "GGSWWPPEEDDKKLLM"], numbers, **options)


def test_a_million_residues_a_second():
    """Processor time, at half the rate it is meant to have, since other work may share the core."""
    rng = np.random.default_rng(10)
    proteins = [natural(rng, 350) for _ in range(3000)]
    memory = WordMemory.fit(proteins[:1500], np.arange(1500) % 500, n_classes=500)
    start = time.process_time()
    memory.votes_of_all(proteins)
    assert 350 * 3000 / (time.process_time() - start) > 500_000
