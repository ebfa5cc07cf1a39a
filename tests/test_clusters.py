"""Homology clusters: what is linked, what is not, and folds that keep links inside."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bioxfer.clusters import HomologyKFold, cluster_sequences, homology_split, shares_homology
from bioxfer.errors import UsageError
from bioxfer.homology import _write_numbered, find_links

ALPHABET = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
METHODS = [
    "kmer",
    pytest.param("mmseqs", marks=pytest.mark.skipif(not shutil.which("mmseqs"), reason="no mmseqs on PATH")),
]


def natural(rng, length):
    return "".join(rng.choice(ALPHABET, size=length))


def mutate(rng, sequence, share):
    """Replace this share of the residues by others."""
    residues = np.array(list(sequence))
    hit = rng.choice(len(residues), size=round(share * len(residues)), replace=False)
    residues[hit] = rng.choice(ALPHABET, size=len(hit))
    return "".join(residues)


@pytest.fixture
def families():
    """30 unrelated families of 4, relatives at about 65% identity of their ancestor, in mixed order."""
    rng = np.random.default_rng(7)
    sequences, family = [], []
    for number in range(30):
        ancestor = natural(rng, int(rng.integers(80, 300)))
        for _ in range(4):
            sequences.append(mutate(rng, ancestor, 0.25))
            family.append(number)
    order = rng.permutation(len(sequences))
    return [sequences[i] for i in order], np.array(family)[order]


def same_partition(a, b):
    return len(np.unique(a)) == len(np.unique(b)) == len(set(zip(a.tolist(), b.tolist(), strict=True)))


@pytest.mark.parametrize("method", METHODS)
def test_planted_families_are_recovered_exactly(families, method):
    sequences, family = families
    assert same_partition(cluster_sequences(sequences, method=method), family)


def test_random_proteins_stay_alone():
    rng = np.random.default_rng(1)
    sequences = [natural(rng, 200) for _ in range(150)]
    assert len(np.unique(cluster_sequences(sequences, method="kmer"))) == 150


def test_insertion_does_not_hide_a_relative():
    rng = np.random.default_rng(2)
    first = natural(rng, 160)
    second = mutate(rng, first[:80] + natural(rng, 9) + first[80:], 0.2)
    links = find_links([first], [second], coverage=0.9, method="kmer")
    assert len(links) == 1
    assert links.identity[0] == pytest.approx(0.8, abs=0.08)


def test_clusters_do_not_depend_on_order(families):
    sequences, _ = families
    order = np.random.default_rng(3).permutation(len(sequences))
    forward = cluster_sequences(sequences, method="kmer")
    shuffled = cluster_sequences([sequences[i] for i in order], method="kmer")
    assert same_partition(forward[order], shuffled)


def test_small_memory_blocks_change_nothing(families, monkeypatch):
    sequences, _ = families
    whole = find_links(sequences, method="kmer")
    monkeypatch.setattr("bioxfer.homology._HITS_AT_ONCE", 300)
    parts = find_links(sequences, method="kmer")
    for name in ("query", "reference", "identity", "coverage", "score"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_identical_sequences_share_a_cluster_however_short_or_written():
    groups = cluster_sequences(["MK", "mk", "MKV", "PPPPPPPPPPPPPPPP", "PPPPPPPPPPPPPPPP"], method="kmer")
    assert groups.tolist() == [0, 0, 1, 2, 2]


def test_empty_sequences_are_relatives_of_nobody():
    assert cluster_sequences(["", "MKTAYIAK", ""], method="kmer").tolist() == [0, 1, 2]
    assert cluster_sequences([], method="kmer").tolist() == []
    assert shares_homology([""], [""], method="kmer").tolist() == [False]
    assert shares_homology(["MKTAYIAK"], [], method="kmer").tolist() == [False]


def test_low_complexity_is_no_kinship():
    rng = np.random.default_rng(4)
    tail = "SRSRSSRSRSSSRSRS" * 4
    first, second = natural(rng, 150) + tail, natural(rng, 150) + tail
    assert len(find_links([first], [second], coverage=0.0, method="kmer")) == 0


def test_unknown_and_foreign_letters_are_no_evidence():
    assert len(find_links(["X" * 200], ["X" * 200], coverage=0.0, identity=0.0, method="kmer")) == 0
    rng = np.random.default_rng(5)
    base = natural(rng, 120)
    odd = base[:60] + "é" + base[61:]  # one character is one residue
    links = find_links([odd], [base], method="kmer")
    assert links.coverage[0] == pytest.approx(1.0)


def test_thresholds_separate_near_from_far(families):
    sequences, _ = families
    assert len(find_links(sequences, identity=0.95, method="kmer")) == 0
    loose = find_links(sequences, identity=0.3, method="kmer")
    assert len(loose) == 30 * 6
    assert (loose.reference < loose.query).all()


def test_a_shared_domain_counts_for_shares_homology_not_for_clusters():
    rng = np.random.default_rng(6)
    domain = natural(rng, 90)
    first, second = natural(rng, 130) + domain, domain + natural(rng, 140)
    assert shares_homology([first, natural(rng, 200)], [second], method="kmer").tolist() == [True, False]
    assert cluster_sequences([first, second], method="kmer").tolist() == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_shares_homology_finds_relatives_among_strangers(families, method):
    sequences, family = families
    rng = np.random.default_rng(8)
    references = [s for s, f in zip(sequences, family, strict=True) if f < 10]
    queries = [mutate(rng, s, 0.1) for s in sequences]
    np.testing.assert_array_equal(shares_homology(queries, references, method=method), family < 10)


def test_a_family_beyond_the_followed_occurrences_is_one_cluster(monkeypatch):
    monkeypatch.setattr("bioxfer.homology._OCCURRENCES", 8)
    rng = np.random.default_rng(9)
    ancestor = natural(rng, 120)
    family = [mutate(rng, ancestor, 0.15) for _ in range(60)]
    assert set(cluster_sequences(family, method="kmer").tolist()) == {0}


@pytest.mark.parametrize("method", METHODS[1:])
def test_proteins_that_look_like_nucleotides_are_searched_as_proteins(method):
    rng = np.random.default_rng(4)
    first = "".join(rng.choice(list("ACGT"), size=200))
    links = find_links([first], ["".join(rng.choice(list("ACGT"), size=200)), first], method=method)
    assert links.reference.tolist() == [1]
    assert links.identity.tolist() == [1]


def test_ids_that_a_search_tool_would_edit_never_reach_it(tmp_path):
    _write_numbered(tmp_path / "q.fasta", ["mkta*J", "", "PPWW"])
    assert (tmp_path / "q.fasta").read_text() == ">s0\nMKTAXX\n>s2\nPPWW\n"


def test_missing_mmseqs_falls_back_or_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cluster_sequences(["MKTAYIAK", "MKTAYIAK"]).tolist() == [0, 0]
    with pytest.raises(UsageError, match="needs the program mmseqs on PATH"):
        cluster_sequences(["MKTAYIAK"], method="mmseqs")


@pytest.mark.parametrize(
    "options", [{"identity": 30.0}, {"coverage": -0.1}, {"method": "blast"}, {"identity": float("nan")}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match=str(next(iter(options.values())))):
        cluster_sequences(["MKTAYIAK"], **options)


def test_folds_share_no_cluster_and_hold_every_protein_once():
    rng = np.random.default_rng(11)
    groups = rng.integers(0, 60, size=500)
    y = rng.choice(list("abc"), p=[0.7, 0.2, 0.1], size=500)
    seen = []
    for train, test in HomologyKFold(5, seed=1).split(np.zeros(500), y, groups):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(500))
        assert len(test) == pytest.approx(100, abs=15)
        for label in "abc":
            assert (y[test] == label).mean() == pytest.approx((y == label).mean(), abs=0.08)
        seen.extend(test)
    assert sorted(seen) == list(range(500))


def test_folds_from_sequences_keep_planted_copies_together(families):
    sequences, family = families
    for train, test in HomologyKFold(3, method="kmer").split(sequences):
        assert not set(family[train]) & set(family[test])


def test_folds_work_inside_scikit_learn():
    from sklearn.dummy import DummyClassifier
    from sklearn.model_selection import cross_val_score

    y = np.array([0, 1] * 30)
    scores = cross_val_score(
        DummyClassifier(), np.zeros((60, 1)), y, groups=np.arange(60) // 2, cv=HomologyKFold(3)
    )
    assert len(scores) == 3


def test_one_giant_cluster_leaves_no_fold_empty():
    groups = np.array([0] * 97 + [1, 2, 3])
    folds = [test for _, test in HomologyKFold(4).split(groups, None, groups)]
    assert sorted(map(len, folds)) == [1, 1, 1, 97]


def test_fewer_clusters_than_folds_is_refused():
    with pytest.raises(UsageError, match="2 homology clusters cannot fill 5 folds"):
        list(HomologyKFold(5).split([0] * 4, None, [0, 0, 1, 1]))
    with pytest.raises(UsageError, match="n_splits 1"):
        list(HomologyKFold(1).split([0] * 4, None, [0, 0, 1, 1]))


def test_homology_split_holds_out_whole_clusters_of_every_class():
    rng = np.random.default_rng(12)
    groups = rng.integers(0, 80, size=400)
    y = np.where(rng.random(400) < 0.1, "rare", "common")
    side = homology_split(groups, valid=0.2, seed=3, y=y)
    assert not set(groups[side == "train"]) & set(groups[side == "valid"])
    assert (side == "valid").mean() == pytest.approx(0.2, abs=0.04)
    assert (side[y == "rare"] == "valid").mean() == pytest.approx(0.2, abs=0.08)
    assert (side == homology_split(groups, valid=0.2, seed=3, y=y)).all()
    with pytest.raises(UsageError, match=r"valid 1\.5"):
        homology_split(groups, valid=1.5)


def test_homology_split_makes_as_many_parts_as_are_asked_for():
    groups = np.arange(200) // 2
    part = homology_split(groups, valid=0.2, test=0.1, dev=0.1, seed=1)
    assert {name: int((part == name).sum()) for name in np.unique(part)} == {
        "train": 120, "dev": 20, "valid": 40, "test": 20
    }  # fmt: skip
    assert (part[::2] == part[1::2]).all()
    for shares in ({"valid": 0.5, "test": 0.5}, {"valid": 0.0}, {"dev": -0.1}, {"test": float("nan")}):
        with pytest.raises(UsageError, match=r"sum to|is not between"):
            homology_split(groups, **shares)
    with pytest.raises(UsageError, match="2 homology clusters cannot fill 3 parts"):
        homology_split([0, 0, 1], valid=0.3, test=0.3)


def test_every_column_of_a_matrix_is_balanced():
    rng = np.random.default_rng(13)
    groups = rng.integers(0, 150, size=600)
    y = rng.random((600, 4)) < [0.5, 0.3, 0.1, 0.05]
    y = np.column_stack([y, np.zeros(600)]).astype(np.float32)
    for _, test in HomologyKFold(4).split(y, y, groups):
        np.testing.assert_allclose(y[test, :4].sum(axis=0), y[:, :4].sum(axis=0) / 4, atol=4)


def test_continuous_targets_are_not_balanced():
    groups = np.arange(60) // 3
    plain = [test.tolist() for _, test in HomologyKFold(3).split(groups, None, groups)]
    for y in (np.linspace(0, 1, 60), np.arange(60), np.random.default_rng(0).random((60, 2))):
        assert [test.tolist() for _, test in HomologyKFold(3).split(groups, y, groups)] == plain


def test_a_class_of_one_cluster_is_missing_in_training_and_named(caplog):
    groups = np.arange(30) // 2
    y = np.where(groups == 7, "alone", "many")
    with caplog.at_level("WARNING", logger="bioxfer"):
        rounds = list(HomologyKFold(3).split(groups, y, groups))
    assert "missing in that fold's training: alone; use fewer folds" in caplog.text
    assert sum("alone" not in y[train] for train, _ in rounds) == 1
    assert sum("alone" not in y[test] for _, test in rounds) == 2
    caplog.clear()
    list(HomologyKFold(3).split(groups, np.full(30, "only"), groups))
    assert not caplog.text


@pytest.mark.parametrize(
    ("x", "y", "groups", "sentence"),
    [
        ([], None, [], "0 proteins in 0 homology clusters cannot fill 2 folds"),
        ([0] * 4, [0] * 3, [0, 1, 2, 3], "labels of shape \\(3,\\) do not fit 4 proteins"),
        ([0] * 4, None, [0, 1, 2], "do not fit 4 proteins; give one cluster each"),
        (["MK", "MK"], None, None, "2 proteins in 1 homology clusters cannot fill 2 folds"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, groups, sentence):
    with pytest.raises(UsageError, match=sentence):
        list(HomologyKFold(2, method="kmer").split(x, y, groups))


@pytest.mark.parametrize("options", [{"identity": 1.5}, {"coverage": -1.0}])
def test_folds_refuse_thresholds_out_of_range(options):
    with pytest.raises(UsageError, match=str(next(iter(options.values())))):
        list(HomologyKFold(2, method="kmer", **options).split(["MKT", "WWP"]))


def test_folds_serve_a_grid_search():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    rng = np.random.default_rng(14)
    groups, x = np.arange(90) // 3, rng.normal(size=(90, 3))
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=HomologyKFold(3, seed=2))
    search.fit(x, x[:, 0] > 0, groups=groups)
    assert search.n_splits_ == 3
    assert search.best_score_ > 0.8


def test_the_score_ranks_relatives():
    rng = np.random.default_rng(15)
    ancestor = natural(rng, 160)
    nearer, farther = mutate(rng, ancestor, 0.1), mutate(rng, ancestor, 0.4)
    links = find_links([ancestor], [farther, nearer], method="kmer")
    assert links.reference.tolist() == [0, 1]
    assert links.score[1] > links.score[0] > 30


def test_repeats_do_not_score_twice():
    rng = np.random.default_rng(16)
    unit = natural(rng, 40)
    once = find_links([natural(rng, 300)], [unit * 5], method="kmer")
    twice = find_links([unit * 5], [unit * 5], method="kmer")
    assert len(once) == 0
    assert twice.score[0] == pytest.approx(5 * find_links([unit], [unit], method="kmer").score[0], rel=0.1)


def test_a_gapped_alignment_finds_what_one_diagonal_does_not_cover():
    rng = np.random.default_rng(17)
    first = natural(rng, 240)
    pieces = [mutate(rng, first[start : start + 24], 0.45) for start in range(0, 240, 24)]
    second = "".join(piece + natural(rng, 4) for piece in pieces)
    links = find_links([first], [second], coverage=0.8, method="kmer")
    assert len(links) == 1
    assert links.coverage[0] > 0.9
    assert 0.4 < links.identity[0] < 0.7


def test_near_copies_with_a_low_complexity_half_are_one_cluster():
    rng = np.random.default_rng(18)
    first = natural(rng, 60) + "SRSRSSRSRSSSRSRS" * 5
    assert cluster_sequences([first, mutate(rng, first, 0.03)], method="kmer").tolist() == [0, 0]


def test_lists_of_labels_are_balanced_each_label_by_itself():
    rng = np.random.default_rng(15)
    groups = np.arange(300) // 2
    matrix = rng.random((300, 3)) < [0.5, 0.3, 0.1]
    names = np.array(["a", "b", "c"])
    lists = [names[row].tolist() for row in matrix]
    wanted = [test.tolist() for _, test in HomologyKFold(3).split(groups, matrix, groups)]
    sparse = pytest.importorskip("scipy.sparse")
    ragged = np.empty(300, dtype=object)
    ragged[:] = lists
    for y in (lists, [set(each) for each in lists], ragged, sparse.csr_matrix(matrix.astype(int))):
        assert [test.tolist() for _, test in HomologyKFold(3).split(groups, y, groups)] == wanted
    assert (homology_split(groups, y=lists, seed=1) == homology_split(groups, y=matrix, seed=1)).all()
    pairs = [["a", "b"] if place % 3 else ["b", "c"] for place in range(300)]  # as many labels each
    sides = homology_split(groups, y=pairs, valid=0.3)
    held = [pair for pair, side in zip(pairs, sides, strict=True) if side == "valid"]
    assert sum("c" in pair for pair in held) == pytest.approx(30, abs=2)


def test_a_label_of_one_cluster_is_named_from_lists_too(caplog):
    y = [["many", "alone"] if place // 2 == 7 else ["many"] for place in range(30)]
    list(HomologyKFold(3).split(y, y, np.arange(30) // 2))
    assert "missing in that fold's training: alone; use" in caplog.text


def test_labels_of_residues_are_not_balanced(caplog):
    rng = np.random.default_rng(16)
    proteins = [natural(rng, int(rng.integers(12, 40))) for _ in range(8)]
    groups = np.arange(8)
    plain = [test.tolist() for _, test in HomologyKFold(2).split(proteins, None, groups)]
    numbers = [rng.random(len(protein)).tolist() for protein in proteins]
    texts = [" ".join(map(str, each)) for each in numbers]
    marks = ["H" * len(protein) for protein in proteins]
    for y in (numbers, [np.array(each) for each in numbers], texts, marks):
        assert [test.tolist() for _, test in HomologyKFold(2).split(proteins, y, groups)] == plain
    assert not caplog.text
    with pytest.raises(UsageError, match="7 labels do not fit 8 proteins; give a label or a row each"):
        list(HomologyKFold(2).split(proteins, numbers[1:], groups))


def test_parts_are_not_called_folds():
    with pytest.raises(UsageError, match="1 homology clusters cannot fill 2 parts; hold out fewer parts"):
        homology_split([0, 0, 0])
