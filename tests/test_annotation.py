"""Annotation transfer: the label of the nearest annotated protein, by vectors or by alignment."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score
from toys import backbone

import bioxfer
from bioxfer.clusters import HomologyKFold
from bioxfer.errors import UsageError
from bioxfer.estimators import AnnotationTransfer, SequenceClassifier
from bioxfer.heads import Neighbour, TrainedHead
from bioxfer.prediction import predict
from bioxfer.sequences import SequenceRecord

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def mutate(protein: str, share: float, dice: np.random.Generator) -> str:
    changed = dice.random(len(protein)) < share
    return "".join(
        str(dice.choice(LETTERS)) if c else letter for letter, c in zip(protein, changed, strict=True)
    )


@pytest.fixture(scope="module")
def families():
    """Five families of six relatives each at about 75% identity, of three functions."""
    dice = np.random.default_rng(0)
    founders = ["".join(dice.choice(LETTERS, size=150)) for _ in range(5)]
    proteins = [mutate(founders[i % 5], 0.15, dice) for i in range(30)]
    return proteins, np.array(["kinase", "kinase", "ligase", "ligase", "lyase"] * 6)


@pytest.fixture
def records(families):
    return [SequenceRecord(f"P{i}", protein) for i, protein in enumerate(families[0])]


@pytest.fixture(params=["embedding", "alignment"])
def transfer(request):
    return AnnotationTransfer(backbone(), by=request.param, method="kmer")


def test_it_is_exported():
    assert bioxfer.AnnotationTransfer is AnnotationTransfer


def test_a_protein_gets_the_label_of_itself_and_is_told_so(transfer, records, families):
    _, y = families
    transfer.fit(records, y)
    assert transfer.predict(records).tolist() == y.tolist()
    for record, label, neighbour in zip(records, y, transfer.nearest(records), strict=True):
        assert (neighbour.id, neighbour.label) == (record.id, label)
        assert neighbour.similarity == pytest.approx(1.0, abs=1e-3)  # vectors are kept in float16


def test_relatives_are_found_by_alignment(records, families):
    proteins, y = families
    transfer = AnnotationTransfer(by="alignment", method="kmer", neighbours=3).fit(records[5:], y[5:])
    assert transfer.predict(proteins[:5]).tolist() == y[:5].tolist()
    for place, hits in enumerate(transfer.hits(proteins[:5])):
        assert len(hits) == 3
        assert {int(hit.id[1:]) % 5 for hit in hits} == {place}, "all hits are of its own family"
        assert all(0.5 < hit.similarity < 1 for hit in hits)
    assert [hits[0] for hits in transfer.hits(proteins[:5])] == transfer.nearest(proteins[:5])


def test_what_cannot_be_aligned_gets_the_frequencies(records, families):
    proteins, _ = families
    y = np.array(["rare"] * 10 + ["often"] * 20)
    transfer = AnnotationTransfer(by="alignment", method="kmer").fit(records, y)
    stranger = "".join(np.random.default_rng(9).choice(LETTERS, size=100))
    assert transfer.predict([stranger, proteins[0]]).tolist() == ["often", "rare"]
    np.testing.assert_allclose(transfer.predict_proba([stranger])[0], [2 / 3, 1 / 3])
    none = transfer.nearest([stranger])[0]
    assert (none.id, none.label) == ("", "")
    assert math.isnan(none.similarity)
    assert transfer.hits([stranger]) == [[]]


def test_a_protein_too_short_to_be_significant_is_still_itself():
    transfer = AnnotationTransfer(by="alignment", method="kmer").fit(["MKT", "ACW", "ACW"], ["a", "b", "c"])
    assert transfer.nearest(["acw", "MKT"]) == [Neighbour("seq2", "b", 1.0), Neighbour("seq1", "a", 1.0)]


def test_votes_are_counted_or_weighed(records, families):
    proteins, _ = families
    dice = np.random.default_rng(1)
    query = proteins[0]
    near, far, other = mutate(query, 0.05, dice), mutate(query, 0.5, dice), mutate(query, 0.5, dice)
    annotated = [near, far, other, *proteins[1:5]]
    y = ["right", "wrong", "wrong", *["else"] * 4]
    for by in ("embedding", "alignment"):
        one, weighed, counted = (
            AnnotationTransfer(backbone(), by=by, method="kmer", neighbours=k, weights=weights).fit(
                annotated, y
            )
            for k, weights in ((1, "similarity"), (3, "similarity"), (3, "uniform"))
        )
        assert one.predict([query]).tolist() == ["right"], by
        right = one.classes_.tolist().index("right")
        assert weighed.predict_proba([query])[0, right] > counted.predict_proba([query])[0, right], by
        assert counted.predict_proba([query])[0, right] == pytest.approx(1.01 / 3.03, abs=1e-4)
    assert counted.predict([query]).tolist() == ["wrong"]


def test_a_saved_transfer_predicts_as_before(records, families, tmp_path):
    proteins, y = families
    transfer = AnnotationTransfer(backbone(), neighbours=3, name="function").fit(records[5:], y[5:])
    transfer.save(tmp_path / "h.safetensors")
    again = AnnotationTransfer.load(tmp_path / "h.safetensors", model=backbone())
    np.testing.assert_array_equal(again.predict_proba(proteins), transfer.predict_proba(proteins))
    assert again.hits(proteins[:5]) == transfer.hits(proteins[:5])
    assert (again.neighbours, again.weights, again.name) == (3, "similarity", "function")
    card = TrainedHead.load(tmp_path / "h.safetensors").card
    assert "Scores are shares of votes; they are not calibrated." in card["limits"]
    table = predict(proteins, heads=[tmp_path / "h.safetensors"], model=backbone())
    assert table["function"].tolist() == transfer.predict(proteins).tolist()
    with pytest.raises(UsageError, match="with by='embedding'"):
        AnnotationTransfer(by="alignment", method="kmer").fit(proteins, y).save(tmp_path / "no")
    SequenceClassifier(backbone(), identity=None, folds=2).fit(proteins, y).save(tmp_path / "linear")
    with pytest.raises(UsageError, match="is a linear head for multiclass, not one of annotation transfer"):
        AnnotationTransfer.load(tmp_path / "linear")


def test_it_is_cross_validated_over_families_and_searched(transfer, records, families):
    """Without its relatives no protein finds its label: a random split hides that."""
    _, y = families
    at_random = cross_val_score(transfer, records, y, cv=3).mean()
    by_family = cross_val_score(transfer, records, y, cv=HomologyKFold(3, method="kmer")).mean()
    assert by_family < at_random
    assert at_random == 1.0 or transfer.by == "embedding"
    search = GridSearchCV(transfer, {"neighbours": [1, 5], "weights": ["similarity", "uniform"]}, cv=2)
    assert search.fit(records, y).predict(records).shape == (30,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "magic"}, "by 'magic' is not one of embedding, alignment"),
        ({"weights": "equal"}, "weights 'equal' is not one of similarity, uniform"),
        ({"neighbours": 0}, "neighbours 0 cannot vote; give 1 or more"),
        ({"neighbours": 1.5}, "neighbours 1.5 is no whole number"),
        ({"by": "alignment", "method": "blast"}, "method 'blast' is not one of auto, mmseqs, kmer"),
    ],
)
def test_options_out_of_range_are_refused_by_the_fit(families, options, message):
    proteins, y = families
    transfer = AnnotationTransfer(backbone()).set_params(**options)
    with pytest.raises(UsageError, match=message):
        transfer.fit(proteins, y)


def test_a_change_of_mind_after_the_fit_is_refused(families):
    proteins, y = families
    by_embedding = AnnotationTransfer(backbone()).fit(proteins, y).set_params(by="alignment")
    with pytest.raises(UsageError, match="kept no sequences; fit with by='alignment'"):
        by_embedding.predict(proteins)
    by_alignment = (
        AnnotationTransfer(by="alignment", method="kmer").fit(proteins, y).set_params(by="embedding")
    )
    with pytest.raises(UsageError, match="makes no head; fit with by='embedding'"):
        by_alignment.predict(proteins)


def test_a_refit_the_other_way_forgets_the_first(families):
    proteins, y = families
    transfer = AnnotationTransfer(backbone(), method="kmer").fit(proteins, y)
    transfer.set_params(by="alignment").fit(proteins[:10], y[:10])
    assert not hasattr(transfer, "head_")
    transfer.set_params(by="embedding").fit(proteins, y)
    assert not hasattr(transfer, "sequences_")
