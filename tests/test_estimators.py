"""The scikit-learn face: its rules kept, on a fake embedding."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

import bioxfer.embedding
import bioxfer.estimators.predictors
from bioxfer.clusters import HomologyKFold
from bioxfer.embedding import Embeddings
from bioxfer.errors import InputError, UsageError
from bioxfer.estimators import SequenceClassifier, SequenceEmbedder, SequenceRegressor
from bioxfer.evaluate import composition
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord


def fake_embed(records, *, model, layer, pool, per_residue, first, precision, device, threads, cache):
    """Embed by composition; an empty sequence has no vector."""
    texts = [(r.sequence if isinstance(r, SequenceRecord) else r)[:first] for r in records]
    vectors = composition(texts)
    empty = [not text for text in texts]
    vectors[empty] = np.nan
    return Embeddings(
        ids=[r.id if isinstance(r, SequenceRecord) else f"seq{i + 1}" for i, r in enumerate(records)],
        lengths=[len(text) for text in texts],
        statuses=["skipped" if e else "ok" for e in empty],
        messages=["empty sequence" if e else "" for e in empty],
        vectors=vectors,
        model=model,
        layer=6 if layer is None else layer,
        pool=pool,
        fingerprint=f"{model:f<16}"[:16],
    )


@pytest.fixture(autouse=True)
def _no_backbone(monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.001))  # a short path is a quick test
    monkeypatch.setattr(bioxfer.embedding, "embed", fake_embed)


@pytest.fixture(scope="module")
def proteins():
    rng = np.random.default_rng(0)
    oily, salty = list("AILMFVW"), list("DEKRNQS")
    sequences = ["".join(rng.choice(oily, size=30)) for _ in range(20)]
    sequences += ["".join(rng.choice(salty, size=30)) for _ in range(20)]
    return sequences, np.array(["oily"] * 20 + ["salty"] * 20)


@pytest.fixture
def classifier():
    return SequenceClassifier(model="toy", identity=None, folds=2)


def test_classifier_learns_and_keeps_label_types(proteins, classifier):
    sequences, y = proteins
    classifier.fit(sequences, y)
    assert classifier.score(sequences, y) == 1.0
    assert classifier.classes_.tolist() == ["oily", "salty"]
    np.testing.assert_allclose(classifier.predict_proba(sequences).sum(axis=1), 1)
    numbers = clone(classifier).fit(sequences, (y == "oily").astype(int))
    assert numbers.predict(sequences[:1]).tolist() == [1]
    assert numbers.classes_.dtype.kind == "i"


def test_records_are_as_good_as_strings(proteins, classifier):
    sequences, y = proteins
    records = [SequenceRecord(f"id{i}", s) for i, s in enumerate(sequences)]
    classifier.fit(records, y)
    assert classifier.head_.index.ids[0] == "id0"
    np.testing.assert_array_equal(classifier.predict(records), classifier.predict(sequences))


def test_clone_keeps_options_and_forgets_the_fit(proteins, classifier):
    sequences, y = proteins
    copy = clone(classifier.fit(sequences, y))
    assert copy.get_params() == classifier.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(sequences)
    with pytest.raises(NotFittedError):
        copy.save("nowhere")


def test_cross_validation_and_grid_search_run_over_homology_folds(proteins, classifier):
    sequences, y = proteins
    folds = HomologyKFold(2, method="kmer")
    assert cross_val_score(classifier, sequences, y, cv=folds).tolist() == [1.0, 1.0]
    search = GridSearchCV(classifier, {"head": ["linear", "nearest"]}, cv=folds).fit(sequences, y)
    assert search.best_score_ == 1.0
    assert search.best_estimator_.predict(sequences[:1]).tolist() == ["oily"]


def test_embedder_stands_in_a_pipeline(proteins):
    sequences, y = proteins
    model = make_pipeline(SequenceEmbedder("toy"), LogisticRegression(C=100)).fit(sequences, y)
    assert model.score(sequences, y) == 1.0
    assert SequenceEmbedder("toy").transform(sequences).shape == (40, 21)


def test_homologues_are_clustered_by_default(proteins, monkeypatch):
    sequences, y = proteins
    seen = []

    def spy(texts, *, identity, threads):
        seen.append((list(texts), identity))
        return np.arange(len(texts))

    monkeypatch.setattr("bioxfer.estimators.predictors.cluster_sequences", spy)
    SequenceClassifier("toy", folds=2).fit(sequences, y)
    assert seen == [(sequences, 0.3)]
    SequenceClassifier("toy", folds=2).fit(sequences, y, groups=np.arange(40))
    assert len(seen) == 1


def test_a_saved_classifier_predicts_as_before(proteins, classifier, tmp_path):
    sequences, y = proteins
    classifier.fit(sequences, y).save(tmp_path / "h.safetensors")
    again = SequenceClassifier.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(again.predict_proba(sequences), classifier.predict_proba(sequences))
    assert again.model == "toy"
    assert TrainedHead.load(tmp_path / "h.safetensors").fingerprint == again.head_.fingerprint
    with pytest.raises(UsageError, match="multiclass head, not a regression head"):
        SequenceRegressor.load(tmp_path / "h.safetensors")


def test_regressor_predicts_in_the_labels_unit(proteins, tmp_path):
    sequences, _ = proteins
    y = np.array([s.count("A") + s.count("D") + 40.0 for s in sequences])
    regressor = SequenceRegressor("toy", identity=None, folds=2).fit(sequences, y)
    assert regressor.score(sequences, y) > 0.9
    regressor.save(tmp_path / "h.safetensors")
    again = SequenceRegressor.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(again.predict(sequences), regressor.predict(sequences))


def test_a_protein_without_vector_is_named(proteins, classifier):
    sequences, y = proteins
    with pytest.raises(InputError, match=r"1 of 40 proteins have no vector, first 'seq2' \(empty sequence\)"):
        classifier.fit([sequences[0], "", *sequences[2:]], y)


def test_a_changed_backbone_is_refused_after_the_fit(proteins, classifier):
    sequences, y = proteins
    classifier.fit(sequences, y).set_params(model="other")
    with pytest.raises(UsageError, match=r"model other \(otherfffffffffff\), layer 6, mean is not toy"):
        classifier.predict(sequences)


def test_one_string_is_not_taken_for_a_list_of_letters(classifier):
    with pytest.raises(UsageError, match="X is one string"):
        classifier.fit("MKTAYIAK", ["a"])


def test_classes_of_numbers_are_sorted_as_numbers_and_columns_follow(classifier):
    rng = np.random.default_rng(0)
    letters = "ACDEFGHIKLMN"
    y = np.repeat(np.arange(12), 4)
    sequences = ["".join(rng.permutation(list(letters[label] * 20 + "WY"))) for label in y]
    classifier.fit(sequences, y)
    assert classifier.classes_.tolist() == list(range(12))
    assert classifier.predict_proba(sequences).argmax(axis=1).tolist() == y.tolist()
    assert classifier.predict(sequences).tolist() == y.tolist()


def test_a_head_from_an_estimator_can_be_shown_and_says_that_it_was_not_measured(
    proteins, classifier, tmp_path
):
    from bioxfer.cards import describe_card

    sequences, y = proteins
    classifier.fit(sequences, y).save(tmp_path / "h.safetensors")
    card = TrainedHead.load(tmp_path / "h.safetensors").card
    assert card["data"]["proteins"] == len(sequences)
    assert "nothing was held out" in describe_card(card)


def test_another_pooling_after_the_fit_is_refused(proteins, classifier):
    sequences, y = proteins
    classifier.fit(sequences, y).set_params(pool="max")
    with pytest.raises(UsageError, match="max is not toy"):
        classifier.predict(sequences)


def test_a_pipeline_is_searched_over_what_follows_the_vectors(proteins):
    sequences, y = proteins
    model = make_pipeline(SequenceEmbedder("toy"), LogisticRegression())
    options = {"logisticregression__C": [1e-6, 10.0], "sequenceembedder__pool": ["mean", "max"]}
    search = GridSearchCV(model, options, cv=HomologyKFold(2, method="kmer")).fit(sequences, y)
    assert len(search.cv_results_["params"]) == 4
    assert search.predict(sequences).tolist() == y.tolist()


def test_a_pipeline_predicts_numbers_as_well(proteins):
    sequences, _ = proteins
    y = np.array([s.count("A") + s.count("D") for s in sequences])
    model = make_pipeline(SequenceEmbedder("toy"), Ridge(alpha=1e-3))
    scores = cross_val_score(model, sequences, y, cv=HomologyKFold(2, method="kmer"))
    assert (scores > 0.6).all()


def test_groups_reach_folds_and_fits(proteins, classifier, monkeypatch):
    sequences, y = proteins
    groups = np.arange(40) // 2
    folds = HomologyKFold(2, method="kmer")
    for train, test in folds.split(sequences, y, groups):
        assert not set(groups[train]) & set(groups[test])
    assert cross_val_score(classifier, sequences, y, groups=groups, cv=folds).tolist() == [1.0, 1.0]
    seen = []
    fit_head = bioxfer.estimators.predictors.fit_head

    def spy(vectors, labels, *, groups, ids, head, task, folds, seed):
        seen.append(groups)
        return fit_head(vectors, labels, groups=groups, ids=ids, head=head, task=task, folds=folds, seed=seed)

    monkeypatch.setattr("bioxfer.estimators.predictors.fit_head", spy)
    with config_context(enable_metadata_routing=True):
        asking = clone(classifier).set_fit_request(groups=True)
        scores = cross_val_score(asking, sequences, y, params={"groups": groups}, cv=GroupKFold(2))
    assert scores.tolist() == [1.0, 1.0]
    assert [len(some) for some in seen] == [20, 20]
    assert set(np.concatenate(seen)) == set(groups)


def test_vectors_become_a_table_under_the_index_of_the_sequences(proteins):
    sequences, _ = proteins
    named = pd.Series(sequences[:3], index=["P1", "P2", "P3"])
    table = SequenceEmbedder("toy", pool="mean").set_output(transform="pandas").fit_transform(named)
    assert table.index.tolist() == ["P1", "P2", "P3"]
    assert table.columns.tolist() == [f"mean{i}" for i in range(21)]


def test_a_series_names_the_training_proteins(proteins, classifier):
    sequences, y = proteins
    named = pd.Series(sequences, index=[f"P{i}" for i in range(40)])
    assert classifier.fit(named, y).head_.index.ids[:2] == ("P0", "P1")
    numbered = pd.Series(sequences)
    assert classifier.fit(numbered, y).head_.index.ids[:2] == ("seq1", "seq2")


def test_a_card_that_lies_about_its_labels_is_read_as_text(proteins, classifier, tmp_path):
    sequences, y = proteins
    classifier.fit(sequences, y)
    for word in ("int", "bool", "nonsense", 7):
        classifier.head_.card["label_type"] = word
        classifier.save(tmp_path / "h.safetensors")
        again = SequenceClassifier.load(tmp_path / "h.safetensors")
        assert again.predict(sequences).tolist() == y.tolist()
