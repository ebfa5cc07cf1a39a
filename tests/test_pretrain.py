"""Pretraining learns, stops, goes on where it stopped, and judges itself fairly."""

from __future__ import annotations

import csv
import gzip
import lzma

import numpy as np
import pytest
import torch

from bioxfer.backbones.compact import BOS, EOS, MASK, CompactConfig, CompactModel, load_compact, tokenize
from bioxfer.corpus import IGNORED, Corpus, Crop, CropSampler, mask_and_pack, read_source
from bioxfer.errors import InputError, LabelError, UsageError, WeightsError
from bioxfer.pretrain import PretrainOptions, learning_rate_at, masked_perplexity, pretrain

SMALL = {"width": 64, "layers": 1, "batch_tokens": 512, "crop": 64, "long_crop": 128}


def repeats(count: int, *, seed: int = 0) -> list[str]:
    """Proteins whose residues follow from the one before: A C D E ... over and over, from any place."""
    rng = np.random.default_rng(seed)
    cycle = "ACDEFGHIKLMNPQRSTVWY" * 6
    return [cycle[start : start + 60] for start in rng.integers(20, size=count)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt.xz"
    path.write_bytes(lzma.compress("\n".join(repeats(60)).encode()))
    return path


def test_a_corpus_is_the_same_from_text_and_from_fasta(tmp_path):
    sequences = ["MKV", "GAVLIW", "W"]
    text, fasta = tmp_path / "c.txt", tmp_path / "c.fasta"
    text.write_text("MKV\nGAVLIW\nW")
    fasta.write_text(">a\nMKV\n>b\nGAV\nLIW\n>c\nW\n")
    for found in (Corpus.read([text]), Corpus.read([fasta]), Corpus.from_sequences(sequences)):
        assert [found[i].tolist() for i in range(len(found))] == [tokenize(s).tolist() for s in sequences]
    both = Corpus.read([text, fasta])
    assert len(both) == 6
    assert both[3].tolist() == tokenize("MKV").tolist()


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*c\.txt"):
        Corpus.read([tmp_path / "c.txt"])


def test_a_text_corpus_may_have_any_line_ends_blank_lines_and_compression(tmp_path):
    for name, data in {
        "crlf.txt": b"MKV\r\n\r\ngavliw\r\n",
        "bom.txt": b"\xef\xbb\xbfMKV\nGAVLIW",
        "zipped.txt.gz": gzip.compress(b"MKV\nGAVLIW\n"),
        "fasta.txt": b">a\nMKV\n>b\nGAVLIW\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        found = Corpus.read([tmp_path / name])
        expected = [tokenize("MKV").tolist(), tokenize("GAVLIW").tolist()]
        assert [found[i].tolist() for i in range(len(found))] == expected, name


def sampler(corpus: Corpus, sources=(), **changes) -> CropSampler:
    options = {
        "batch_tokens": 512, "crop": 64, "long_crop": 128, "long_share": 0.1,
        "source_share": 0.5, "mask_share": 0.15, "seed": 0,
    }  # fmt: skip
    return CropSampler(corpus, sources, **(options | changes))


def test_crops_are_stretches_of_their_protein_and_fill_the_batch():
    drawn = sampler(Corpus.from_sequences(repeats(20))).draw(0)
    assert 512 - 32 < sum(len(crop.tokens) for crop in drawn) <= 512
    whole = tokenize("ACDEFGHIKLMNPQRSTVWY" * 8).tobytes()
    for crop in drawn:
        inner = crop.tokens[(crop.tokens != BOS) & (crop.tokens != EOS)]
        assert inner.tobytes() in whole


def test_an_epoch_shows_every_protein_once():
    pool = sampler(Corpus.from_sequences(repeats(17)))
    assert sorted(pool._next(0) for _ in range(17)) == list(range(17))
    assert sorted(pool._next(0) for _ in range(17)) == list(range(17))


def test_masking_asks_for_residues_only_and_keeps_the_answers():
    crop = Crop(np.concatenate(([BOS], tokenize("ACDEFGHIKLMNPQRSTVWYX" * 20), [EOS])).astype(np.uint8))
    batch = mask_and_pack([crop], np.random.default_rng(0), 0.5)
    clear = torch.from_numpy(crop.tokens.astype(np.int64))
    assert (clear[batch.asked] == batch.answers).all()
    assert (batch.answers < 20).all()
    hidden = batch.pack.tokens[batch.asked]
    assert 0.7 < (hidden == MASK).float().mean() < 0.9
    untouched = torch.ones(len(clear), dtype=torch.bool)
    untouched[batch.asked] = False
    assert (batch.pack.tokens[untouched] == clear[untouched]).all()


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sequence", "label"])
        writer.writerows(rows)
    return path


def test_a_source_table_tells_its_kind_by_its_labels(tmp_path):
    residue = read_source(write_table(tmp_path / "r.csv", [("a", "MKVL", "HHEC"), ("b", "GA", "EC")]))
    assert residue.classes == (3,)
    assert residue.residue_targets.tolist() == [2, 2, 1, 0, 1, 0]
    numbers = [(f"e{i}", "MKVLAA", f"1.{i % 2}.3.4;2.2.2.2") for i in range(24)]
    enzyme = read_source(write_table(tmp_path / "e.csv", numbers))
    assert enzyme.residue_targets is None
    assert enzyme.protein_targets.shape == (24, 3)
    assert enzyme.classes == (2, 2, 2)
    names = [(f"p{i}", "MKVLAA", "ab"[i % 2]) for i in range(24)]
    assert read_source(write_table(tmp_path / "p.csv", names)).classes == (2,)


def test_a_source_table_without_two_classes_is_refused(tmp_path):
    with pytest.raises(LabelError, match="fewer than two classes"):
        read_source(write_table(tmp_path / "p.csv", [(f"p{i}", "MKVLAA", "one") for i in range(12)]))


def test_a_residue_table_with_one_class_is_refused(tmp_path):
    with pytest.raises(LabelError, match="fewer than two classes"):
        read_source(write_table(tmp_path / "p.csv", [("a", "MKVL", "HHHH")]))


def test_source_rows_like_a_test_protein_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    secret, other = ("".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 120)) for _ in range(2))
    rows = [("kin", secret[5:115], "H" * 110), ("stranger", other, "HE" * 60)]
    table = read_source(write_table(tmp_path / "s.csv", rows), unlike=[secret])
    assert len(table.proteins) == 1
    assert table.proteins[0].tolist() == tokenize(other).tolist()


def test_labels_stay_beside_their_residues_through_cropping_masking_and_packing(tmp_path):
    # The label of each residue is told by the residue: A and C are class 0, the others 1.
    rows = [(f"p{i}", s, "".join("x" if r in "AC" else "y" for r in s)) for i, s in enumerate(repeats(10))]
    table = read_source(write_table(tmp_path / "s.csv", rows))
    batch = sampler(Corpus.from_sequences(repeats(10)), [table], mask_share=0.0).batch(0)
    places, classes = batch.residue_targets[0]
    assert len(places) > 50
    tokens = batch.pack.tokens[places]
    assert ((tokens > 1).long() == classes).all()


def test_training_learns_both_objectives_and_writes_usable_weights(tmp_path, corpus):
    labels = {r: "HEC"[i % 3] for i, r in enumerate("ACDEFGHIKLMNPQRSTVWY")}
    rows = [(f"p{i}", s, "".join(labels[r] for r in s)) for i, s in enumerate(repeats(30))]
    table = write_table(tmp_path / "structure.csv", rows)
    out = tmp_path / "w.safetensors"
    card = pretrain(
        [corpus], out, options=PretrainOptions(**SMALL, steps=60, learning_rate=5e-3), valid=corpus,
        sources=[table], report_every=10,
    )  # fmt: skip
    first, last = card["history"][0], card["history"][-1]
    assert last["structure"] < first["structure"]
    assert card["validation"]["perplexity"] < 0.7 * card["validation"]["unigram"]
    assert card["sources"] == {"structure": {"proteins": 30, "classes": [3]}}
    assert load_compact(out).represent(["MKV"], layers=[1])[0].residues.shape == (1, 3, 64)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, corpus):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    pretrain([corpus], whole, options=PretrainOptions(**SMALL, steps=8))
    # The schedule is that of all eight steps only when it is told so: a first run that is cut off.
    checkpoint = tmp_path / "state.ckpt"

    class CutOff(Exception):
        pass

    def cut(step: int) -> None:
        if step == 5:
            raise CutOff

    with pytest.raises(CutOff):
        pretrain(
            [corpus], parts, options=PretrainOptions(**SMALL, steps=8), checkpoint=checkpoint,
            checkpoint_minutes=0.0, progress=cut,
        )  # fmt: skip
    assert not parts.exists()
    pretrain([corpus], parts, options=PretrainOptions(**SMALL, steps=8), checkpoint=checkpoint)
    assert load_compact(whole).fingerprint == load_compact(parts).fingerprint


def test_a_checkpoint_of_other_options_is_refused(tmp_path, corpus):
    checkpoint = tmp_path / "state.ckpt"
    pretrain(
        [corpus], tmp_path / "a.safetensors", options=PretrainOptions(**SMALL, steps=1), checkpoint=checkpoint
    )
    with pytest.raises(UsageError, match="mask_share"):
        pretrain(
            [corpus], tmp_path / "b.safetensors", options=PretrainOptions(**SMALL, steps=2, mask_share=0.3),
            checkpoint=checkpoint,
        )  # fmt: skip


def test_a_checkpoint_of_other_sources_or_no_checkpoint_at_all_is_refused(tmp_path, corpus):
    checkpoint, out = tmp_path / "state.ckpt", tmp_path / "a.safetensors"
    pretrain([corpus], out, options=PretrainOptions(**SMALL, steps=1), checkpoint=checkpoint)
    table = write_table(tmp_path / "s.csv", [("a", "MKVL", "HHEC"), ("b", "GAVL", "HHEC")])
    with pytest.raises(UsageError, match="another corpus or other sources"):
        pretrain(
            [corpus], out, options=PretrainOptions(**SMALL, steps=2), sources=[table], checkpoint=checkpoint
        )
    with pytest.raises(WeightsError, match="not a checkpoint"):
        pretrain([corpus], out, options=PretrainOptions(**SMALL, steps=2), checkpoint=out)
    checkpoint.write_text("notes")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        pretrain([corpus], out, options=PretrainOptions(**SMALL, steps=2), checkpoint=checkpoint)


def test_an_empty_validation_file_is_refused_before_the_training(tmp_path, corpus):
    (tmp_path / "v.txt").write_text("")
    with pytest.raises(InputError, match="no sequence to validate on"):
        pretrain(
            [corpus], tmp_path / "a.safetensors", options=PretrainOptions(**SMALL, steps=1),
            valid=tmp_path / "v.txt",
        )  # fmt: skip


def test_a_second_stage_may_change_the_weight_of_the_sources_and_the_card_tells(tmp_path, corpus):
    checkpoint, out = tmp_path / "state.ckpt", tmp_path / "a.safetensors"
    pretrain([corpus], out, options=PretrainOptions(**SMALL, steps=1), checkpoint=checkpoint)
    card = pretrain([corpus], out, options=PretrainOptions(**SMALL, steps=3, lam=0.9), checkpoint=checkpoint)
    assert [(stage["from_step"], stage["steps"], stage["lam"]) for stage in card["stages"]] == [
        (0, 1, 0.5),
        (1, 3, 0.9),
    ]


def test_perplexity_of_an_untrained_model_is_about_the_number_of_tokens_it_may_choose_from():
    torch.manual_seed(0)
    model = CompactModel(CompactConfig(width=64, layers=1))
    rng = np.random.default_rng(0)
    proteins = Corpus.from_sequences(
        ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 200)) for _ in range(20)]
    )
    scores = masked_perplexity(model, proteins, reference=proteins)
    assert 20 < scores["perplexity"] < 40
    assert scores["unigram"] == pytest.approx(20, rel=0.05)


def test_the_previous_residue_baseline_knows_pairs_and_no_more():
    proteins = Corpus.from_sequences(repeats(40))
    model = CompactModel(CompactConfig(width=64, layers=1))
    scores = masked_perplexity(model, proteins, reference=proteins)
    assert scores["previous_residue"] < 1.6 < 15 < scores["unigram"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "minutes or steps"),
        ({"steps": 1, "minutes": 1.0}, "minutes or steps"),
        ({"minutes": 0.0}, "above 0"),
        ({"steps": 1, "batch_tokens": 64}, "512 at least"),
        ({"steps": 1, "lam": -1.0}, "λ is -1"),
        ({"steps": 1, "lam": float("nan")}, "λ is nan"),
        ({"steps": 1, "optimizer": "sgd"}, "'sgd'"),
        ({"steps": 1, "width": 100}, "multiple of 64"),
    ],
)
def test_options_out_of_range_are_refused(options, named):
    with pytest.raises(UsageError, match=named):
        PretrainOptions(**options)


def test_the_learning_rate_rises_and_then_falls_to_nothing():
    rates = [learning_rate_at(progress) for progress in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.01
    assert rates[-1] == 0.0
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_ignored_targets_have_the_number_that_torch_ignores():
    logits, target = torch.zeros(1, 2), torch.tensor([IGNORED])
    assert torch.isnan(torch.nn.functional.cross_entropy(logits, target))
