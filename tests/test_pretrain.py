"""Pretraining learns, stops, goes on where it stopped, and judges itself fairly."""

from __future__ import annotations

import csv
import gzip
import lzma

import numpy as np
import pytest
import torch

from bioxfer.backbones.compact import BOS, EOS, MASK, CompactConfig, CompactModel, load_compact, tokenize
from bioxfer.checkpoints import read_checkpoint, write_checkpoint
from bioxfer.cli.training import pretrain_command
from bioxfer.corpus import (
    IGNORED,
    Corpus,
    Crop,
    CropSampler,
    SourceTable,
    mask_and_pack,
    read_source,
    read_test_proteins,
)
from bioxfer.errors import InputError, LabelError, UsageError, WeightsError
from bioxfer.pretrain import PretrainOptions, _pool_segments, learning_rate_at, masked_perplexity, pretrain

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
        "source_share": 0.5, "mask_share": 0.15, "source_mask_share": 0.15, "seed": 0,
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
    batch = mask_and_pack([crop], np.random.default_rng(0), [0.5])
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
    assert residue.targets.tolist() == [2, 2, 1, 0, 1, 0]
    holed = read_source(write_table(tmp_path / "h.csv", [("a", "MKVL", "H?E-"), ("b", "GA", "_C")]))
    assert holed.classes == (3,)
    assert holed.targets.tolist() == [2, IGNORED, 1, IGNORED, IGNORED, 0]
    numbers = [(f"e{i}", "MKVLAA", f"1.{i % 2}.3.4;2.2.2.2") for i in range(24)]
    enzyme = read_source(write_table(tmp_path / "e.csv", numbers))
    assert enzyme.kind == "classes"
    assert enzyme.targets.shape == (24, 3)
    assert enzyme.classes == (2, 2, 2)
    names = [(f"p{i}", "MKVLAA", "ab"[i % 2]) for i in range(24)]
    assert read_source(write_table(tmp_path / "p.csv", names)).classes == (2,)
    degrees = read_source(
        write_table(tmp_path / "t.csv", [(f"p{i}", "MKVLAA", f"{40 + i}.5") for i in range(12)])
    )
    assert (degrees.kind, degrees.classes, degrees.targets.shape) == ("number", (1,), (12, 1))
    assert degrees.targets.mean() == pytest.approx(0, abs=1e-6)
    assert degrees.targets.std() == pytest.approx(1, abs=1e-6)


def test_a_source_table_without_two_classes_is_refused(tmp_path):
    with pytest.raises(LabelError, match="at least two classes"):
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
    batch = sampler(Corpus.from_sequences(repeats(10)), [table], source_mask_share=0.0).batch(0)
    places, classes = batch.residue_targets[0]
    assert len(places) > 50
    tokens = batch.pack.tokens[places]
    assert ((tokens > 1).long() == classes).all()


def test_a_protein_of_two_tables_answers_for_both(tmp_path):
    shared = repeats(6)
    letters = write_table(tmp_path / "l.csv", [(f"p{i}", s, "HE" * 30) for i, s in enumerate(shared)])
    names = write_table(tmp_path / "n.csv", [(f"p{i}", s, "ab"[i % 2]) for i, s in enumerate(shared)])
    tables = [read_source(letters), read_source(names)]
    for crop in sampler(Corpus.from_sequences(repeats(5, seed=1)), tables).draw(0):
        assert set(crop.residue_targets) == ({0} if crop.labelled else set())
        assert set(crop.protein_targets) == ({1} if crop.labelled else set())
        if crop.labelled:
            assert crop.residue_targets[0].tolist() == [IGNORED, *[1, 0] * 30, IGNORED]


def test_sources_get_their_share_of_the_tokens_by_weight(tmp_path):
    tables = [
        read_source(
            write_table(
                tmp_path / f"{n}.csv", [(f"p{i}", s, "ab"[i % 2]) for i, s in enumerate(repeats(40, seed=n))]
            )
        )
        for n in range(2)
    ]
    pool = sampler(Corpus.from_sequences(repeats(9, seed=2)), tables, batch_tokens=4096, weights=[3.0, 1.0])
    for step in range(20):
        pool.draw(step)
    shares = np.array(pool.given) / sum(pool.given)
    assert shares == pytest.approx([0.5, 0.375, 0.125], abs=0.02)


def test_training_learns_numbers_and_classes_of_proteins(tmp_path, corpus):
    rng = np.random.default_rng(0)
    pools = [list("ACDEFGHIKL"), list("MNPQRSTVWY")]
    rows = [("".join(rng.choice(pools[i % 2], 60)), i % 2) for i in range(40)]
    sorts = write_table(tmp_path / "sorts.csv", [(f"p{i}", s, "ab"[k]) for i, (s, k) in enumerate(rows)])
    heat = write_table(
        tmp_path / "heat.csv", [(f"p{i}", s, f"{40.5 + 9 * k}") for i, (s, k) in enumerate(rows)]
    )
    card = pretrain(
        [corpus], tmp_path / "w.safetensors", sources=[sorts, heat], report_every=10,
        options=PretrainOptions(**SMALL, steps=40, learning_rate=5e-3),
    )  # fmt: skip
    first, last = card["history"][0], card["history"][-1]
    assert last["sorts"] < 0.7 * first["sorts"]
    assert last["heat"] < 0.7 * first["heat"]


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
    card = pretrain([corpus], whole, options=PretrainOptions(**SMALL, steps=8), report_every=2)
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
            checkpoint_minutes=0.0, progress=cut, report_every=2,
        )  # fmt: skip
    assert not parts.exists()
    again = pretrain(
        [corpus], parts, options=PretrainOptions(**SMALL, steps=8), checkpoint=checkpoint, report_every=2
    )
    assert load_compact(whole).fingerprint == load_compact(parts).fingerprint
    history = [{**each, "minutes": 0} for each in card["history"]]  # time is what it is
    assert [{**each, "minutes": 0} for each in again["history"]] == history
    assert [each["step"] for each in history] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": ["1", 0.5, 60]},
        {"counts": [1, 0.5]},
        {"counts": [10**400, 0.5, 60]},
        {"counts": [-1, 0.5, 60]},
        {"counts": [1, float("inf"), 60]},
        {"history": None},
        {"history": [7]},
        {"history": [{"mlm": "low"}]},
        {"means": {"mlm": None}},
        {"means": []},
        {"cursors": ["1"]},
        {"cursors": []},
        {"given": [None]},
    ],
)
def test_a_checkpoint_that_tells_no_numbers_is_refused(tmp_path, corpus, changes):
    checkpoint, out = tmp_path / "state.ckpt", tmp_path / "a.safetensors"
    options = PretrainOptions(**SMALL, steps=1)
    pretrain([corpus], out, options=options, checkpoint=checkpoint)
    state, tensors = read_checkpoint(checkpoint, sort="a pretraining")
    write_checkpoint(checkpoint, {**state, **changes}, tensors, sort="a pretraining")
    with pytest.raises(WeightsError, match=r"state\.ckpt: what the checkpoint holds does not fit together"):
        pretrain([corpus], out, options=options, checkpoint=checkpoint)


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
        (0, 1, 1.0),
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
        ({"steps": 1, "attention": (0, 3)}, "block 0 of 6"),
        ({"steps": 1, "attention": (3, 7)}, "block 7 of 6"),
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


def test_more_weight_on_protein_labels_moves_their_loss(tmp_path, corpus):
    """The two λ act each on its own kind of source."""
    rows = [(f"p{i}", s, "ab"[i % 2]) for i, s in enumerate(repeats(40))]
    table = write_table(tmp_path / "sorts.csv", rows)
    fingerprints = set()
    for changes in ({}, {"lam": 0.0}, {"lam_proteins": 0.0}):
        out = tmp_path / "w.safetensors"
        options = PretrainOptions(**SMALL, steps=3, **changes)
        pretrain([corpus], out, options=options, sources=[table])
        fingerprints.add(load_compact(out).fingerprint)
    assert len(fingerprints) == 2  # without a source of residues the first λ has nothing to weigh


def test_changed_weights_of_sources_start_their_shares_anew(tmp_path, corpus):
    table = write_table(tmp_path / "s.csv", [(f"p{i}", s, "ab"[i % 2]) for i, s in enumerate(repeats(40))])
    checkpoint, out = tmp_path / "state.ckpt", tmp_path / "w.safetensors"
    for steps, weights in ((2, (1.0,)), (4, (2.0,))):
        card = pretrain(
            [corpus], out, sources=[table], checkpoint=checkpoint,
            options=PretrainOptions(**SMALL, steps=steps, source_weights=weights),
        )  # fmt: skip
    assert [stage["source_weights"] for stage in card["stages"]] in ([[1.0], (2.0,)], [[1.0], [2.0]])


def test_the_options_tell_which_blocks_attend_where_nothing_was_said():
    assert [PretrainOptions(steps=1, layers=n).attention for n in (1, 4, 6)] == [(), (3,), (3, 5)]
    assert PretrainOptions(steps=1, attention=()).attention == ()


def test_the_command_trains_shallow_models_without_being_told_which_blocks_attend(tmp_path, corpus):
    out = tmp_path / "w.safetensors"
    pretrain_command([str(corpus)], str(out), steps=1, layers=1, width=64, batch_tokens=512, quiet=True)
    assert load_compact(out).represent(["MKV"], layers=[1])[0].residues.shape == (1, 3, 64)
    with pytest.raises(UsageError, match="block 7 of 1"):
        pretrain_command([str(corpus)], str(tmp_path / "v.safetensors"), steps=1, layers=1, attention="7")


def test_a_protein_twice_in_a_table_answers_with_the_row_that_was_drawn(tmp_path):
    protein = repeats(1)[0]
    twice = read_source(write_table(tmp_path / "t.csv", [("a", protein, "H" * 60), ("b", protein, "E" * 60)]))
    pool = sampler(Corpus.from_sequences(repeats(5)), [twice])
    rng = np.random.default_rng(0)
    drawn = [pool._cut(1, index, 128, rng).residue_targets[0].tolist() for index in (0, 1)]
    assert drawn == [[IGNORED, *[kind] * 60, IGNORED] for kind in (1, 0)]


def test_what_another_table_knows_of_a_protein_is_never_forgotten_for_what_it_does_not(tmp_path):
    protein = repeats(1)[0]
    other = read_source(
        write_table(
            tmp_path / "o.csv",
            [("a", protein, "H" * 30 + "?" * 30), ("b", protein, "?" * 45 + "E" * 15), ("c", "MKV", "HHE")],
        )
    )
    names = np.array([[0], [IGNORED]])
    known = SourceTable("k", Corpus.from_sequences([protein] * 2), "classes", names, (2,))
    drawn = SourceTable("d", Corpus.from_sequences([protein]), "classes", np.array([[1]]), (2,))
    pool = sampler(Corpus.from_sequences(repeats(5)), [drawn, other, known])
    crop = pool._cut(1, 0, 128, np.random.default_rng(0))
    assert crop.residue_targets[1].tolist() == [IGNORED, *[1] * 30, *[IGNORED] * 15, *[0] * 15, IGNORED]
    assert crop.protein_targets[0].tolist() == [1]
    assert crop.protein_targets[2].tolist() == [0]


def test_a_residue_label_of_another_length_is_named(tmp_path):
    rows = [(f"p{i}", s, "HE" * 30) for i, s in enumerate(repeats(12))]
    rows[7] = ("bad", rows[7][1], "HE" * 29)
    with pytest.raises(
        LabelError, match=r"'bad' \(.*s\.csv, line 9\): the label has 58 characters for 60 resi"
    ):
        read_source(write_table(tmp_path / "s.csv", rows))


def test_long_source_proteins_are_seen_from_one_of_their_ends(tmp_path):
    protein = "".join(np.random.default_rng(3).choice(list("ACDEFGHIKLMNPQRSTVWY"), 300))
    table = SourceTable("s", Corpus.from_sequences([protein]), "classes", np.array([[0]]), (2,))
    pool = sampler(Corpus.from_sequences(repeats(5)), [table])
    rng = np.random.default_rng(0)
    crops = [pool._cut(1, 0, 128, rng).tokens.tolist() for _ in range(40)]
    head, tail = [BOS, *tokenize(protein[:127])], [*tokenize(protein[-127:]), EOS]
    assert all(crop in (head, tail) for crop in crops)
    assert 10 < crops.count(head) < 30


def test_pooling_takes_all_residues_of_a_crop_and_nothing_else():
    one = {0: np.array([0])}
    head = np.concatenate(([BOS], tokenize("ACDE"))).astype(np.uint8)
    tail = np.concatenate((tokenize("FGHIKLM"), [EOS])).astype(np.uint8)
    crops = [Crop(tokens, labelled=True, protein_targets=one) for tokens in (head, tail)]
    batch = mask_and_pack(crops, np.random.default_rng(0), [0.0, 0.0])
    pooled = _pool_segments(batch.pack.tokens.float()[:, None], batch)
    # mean, max, cls, start and end of the token numbers
    assert pooled[0].tolist() == [1.5, 3, BOS, 1.5, 1.5]
    assert pooled[1].tolist() == [7, 10, 4, 7, 7]


def test_sources_get_their_share_in_small_batches_too():
    table = SourceTable(
        "s", Corpus.from_sequences(repeats(40)), "classes", np.zeros((40, 1), dtype=np.int64), (2,)
    )
    pool = sampler(
        Corpus.from_sequences(repeats(9, seed=2)),
        [table],
        batch_tokens=1024,
        long_crop=1024,
        source_share=0.85,
    )
    for step in range(50):
        crops = pool.draw(step)
        assert sum(len(crop.tokens) for crop in crops) <= 1024
    assert pool.given[1] / sum(pool.given) == pytest.approx(0.85, abs=0.02)


def test_ec_numbers_are_known_up_to_their_first_dash(tmp_path):
    labels = ["1.1.1.1", "1.2.-.-", "1.2.3.-", "-.-.-.-", "1.1.1.2"] * 10
    table = read_source(write_table(tmp_path / "e.csv", [(f"p{i}", "MKV", x) for i, x in enumerate(labels)]))
    no = IGNORED
    assert table.targets[:5].tolist() == [[0, 0, 0], [1, no, no], [1, 1, no], [no, no, no], [0, 0, 1]]
    assert table.classes == (2, 2, 2)
    labels = ["1.1.-.-", "1.2.-.-"] * 10
    table = read_source(write_table(tmp_path / "f.csv", [(f"p{i}", "MKV", x) for i, x in enumerate(labels)]))
    assert table.classes == (2,)


def test_rare_classes_are_ignored_and_small_tables_need_two_of_each(tmp_path):
    names = ["a"] * 12 + ["b"] * 10 + ["c"] * 9
    table = read_source(write_table(tmp_path / "n.csv", [(f"p{i}", "MKVL", n) for i, n in enumerate(names)]))
    assert table.targets[:, 0].tolist() == [0] * 12 + [1] * 10 + [IGNORED] * 9
    names = ["a"] * 5 + ["b"] * 2 + ["c"]
    table = read_source(write_table(tmp_path / "m.csv", [(f"p{i}", "MKVL", n) for i, n in enumerate(names)]))
    assert table.targets[:, 0].tolist() == [0] * 5 + [1] * 2 + [IGNORED]
    with pytest.raises(LabelError, match=r"u\.csv: fewer than two classes"):
        read_source(write_table(tmp_path / "u.csv", [(f"p{i}", "MKVL", n) for i, n in enumerate("abc")]))


def test_source_proteins_are_cleaned(tmp_path):
    rows = [("a", "mkvl*", "HHEC"), ("b", "G-A.", "EC"), ("none", "*", "H")]
    table = read_source(write_table(tmp_path / "r.csv", rows))
    assert table.proteins.tokens.tolist() == tokenize("MKVLGA").tolist()
    assert table.targets.tolist() == [2, 2, 1, 0, 1, 0]


def test_an_empty_label_and_unusable_labels_name_their_place(tmp_path):
    rows = [("a", "MKVL", "x"), ("b", "MKVL", ""), ("c", "MKVL", "y")]
    with pytest.raises(LabelError, match=r"'b' \(.*s\.csv, line 3\): the label is empty"):
        read_source(write_table(tmp_path / "s.csv", rows))
    with pytest.raises(LabelError, match="needs the columns id, sequence and label"):
        read_source(write_table(tmp_path / "t.csv", [("a", "MKVL", "")]))
    with pytest.raises(LabelError, match=r"u\.csv: .*at least two classes"):
        read_source(write_table(tmp_path / "u.csv", [(f"p{i}", "MKVLAA", "one") for i in range(12)]))


def test_test_proteins_are_chosen_by_their_split_in_either_case(tmp_path):
    def write(*splits):
        path = tmp_path / "x.csv"
        rows = [f"p{i},{'ACDEF'[i] * 9},{split}" for i, split in enumerate(splits)]
        path.write_text("\n".join(["id,sequence,split", *rows]))
        return path

    chosen = read_test_proteins(write("train", "Test", "DEV", "valid", ""))
    assert [sequence[0] for sequence in chosen] == ["C", "D", "E", "F"]
    assert len(read_test_proteins(write("", ""))) == 2
    with pytest.raises(
        LabelError, match=r"no split begins with test, val, dev \(found: 'heldout', 'train'\)"
    ):
        read_test_proteins(write("train", "heldout", ""))


def test_a_checkpoint_of_a_corpus_or_source_with_other_contents_is_refused(tmp_path):
    corpus, out, checkpoint = tmp_path / "c.txt", tmp_path / "w.safetensors", tmp_path / "s.ckpt"
    table = tmp_path / "s.csv"

    def run(residues: str, labels: str) -> None:
        corpus.write_text(residues)
        write_table(table, [("a", "MKVL", labels), ("b", "GAVL", "HHEC")])
        options = PretrainOptions(**SMALL, steps=1)
        pretrain([corpus], out, options=options, sources=[table], checkpoint=checkpoint)

    run("MKVLAAGW", "HHEC")
    run("MKVLAAGW", "HHEC")
    for residues, labels in (("MKVLAAGG", "HHEC"), ("MKVLAAGW", "HEEC")):
        with pytest.raises(UsageError, match="another corpus or other sources"):
            run(residues, labels)


def test_validation_on_nothing_that_can_be_asked_is_refused_before_the_training(tmp_path, corpus):
    valid = tmp_path / "v.fasta"
    valid.write_text(">a\nXXXXXX\n")
    steps = []
    with pytest.raises(InputError, match=r"v\.fasta: the mask asks for no residue"):
        pretrain(
            [corpus], tmp_path / "a.safetensors", options=PretrainOptions(**SMALL, steps=1), valid=valid,
            progress=steps.append,
        )  # fmt: skip
    assert not steps
    with pytest.raises(InputError, match="1 proteins: the mask asks for no residue"):
        masked_perplexity(CompactModel(CompactConfig(width=64, layers=1)), Corpus.from_sequences(["XXX"]))


def test_a_batch_that_asks_for_nothing_is_passed_over(tmp_path):
    (tmp_path / "c.txt").write_text("X" * 200)
    out = tmp_path / "w.safetensors"
    card = pretrain([tmp_path / "c.txt"], out, options=PretrainOptions(**SMALL, steps=2))
    assert card["steps"] == 2


def test_sources_that_would_share_a_name_are_refused(tmp_path, corpus):
    options = PretrainOptions(**SMALL, steps=1)
    for names, told in ((("a/s.csv", "b/s.tsv"), "another source"), (("mlm.csv",), "masked residues")):
        with pytest.raises(UsageError, match=told):
            pretrain([corpus], tmp_path / "w.safetensors", options=options, sources=names)
