"""Transfer from records and from the command line: sources without relatives, one card, one head."""

from __future__ import annotations

import csv
import logging
import random
from dataclasses import fields, replace

import pytest
from toys import OILY, SALTY, backbone, proteins, run, table, write_weights

from bioxfer.backbones import load_backbone
from bioxfer.cards import describe_card
from bioxfer.curves import CURVE_COLUMNS
from bioxfer.errors import LabelError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord
from bioxfer.training import train_on_records
from bioxfer.transfer_data import Source, TransferOptions, keep_training_rows


@pytest.fixture(autouse=True)
def _short_training(monkeypatch):
    """Short paths and few steps make quick tests."""
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))
    monkeypatch.setattr("bioxfer.trunks.PENALTIES", (0.1, 0.01))
    monkeypatch.setattr("bioxfer.trunks.STEPS", (20, 40))
    monkeypatch.setattr("bioxfer.trunks.JOINT_STOPS", (5, 10))


def sources(count: int = 40, *, seed: int = 1) -> list[SequenceRecord]:
    return [
        replace(record, id=f"s{record.id}", label=f"is {record.label}")
        for record in proteins(count, seed=seed)
    ]


def transfer(records, given, **changes):
    names = {field.name for field in fields(TransferOptions)} & set(changes)
    own = {name: changes.pop(name) for name in names}
    options = TransferOptions(sources=given, **({"sizes": (), "lam": 1.0} | own))
    rest = {"name": "taste", "head": "linear", "pool": "mean", "valid": 0.3, "cluster_by": "kmer"}
    return train_on_records(records, backbone(), transfer=options, **(rest | changes))


def test_a_transfer_gives_a_head_whose_card_compares_three_ways(tmp_path):
    trained = transfer(proteins(), [Source("other", sources())], sizes=(8,), draws=1)
    card = trained.card
    assert set(card["transfer"]["ways"]) == {"target_only", "sequential", "joint"}
    (told,) = card["transfer"]["sources"]
    assert told["proteins"] + told["left_out_as_relatives"] == 40
    assert {point["size"] for point in card["transfer"]["curve"]} == {8, card["split"]["train"]}
    page = describe_card(card)
    assert f"transfer from other ({told['proteins']} proteins)" in page
    assert card["transfer"]["verdict"]["word"] in page
    way = card["transfer"]["ways"][card["transfer"]["chosen"]]
    assert (card["head"]["kind"], card["metrics"]) == (way["kind"], way["metrics"])
    trained.save(tmp_path / "head.safetensors")
    again = TrainedHead.load(tmp_path / "head.safetensors")
    assert again.card["transfer"]["verdict"] == card["transfer"]["verdict"]


def test_source_proteins_that_resemble_those_that_judge_or_choose_are_left_out():
    sides = ["valid"] * 12 + ["dev"] * 8 + ["train"] * 20
    target = [replace(r, split=side) for r, side in zip(proteins(), sides, strict=True)]
    copies = [replace(r, id=f"copy{n}", label="is it", split=None) for n, r in enumerate(target)]
    given = [Source("copies", copies + sources())]
    (told,) = transfer(target, given, split="column").card["transfer"]["sources"]
    assert 20 <= told["left_out_as_relatives"] <= 23  # a few more at most, by chance
    assert told["proteins"] == 80 - told["left_out_as_relatives"]
    assert told["with_relatives_in_target_training"] >= 18
    alone = [replace(r, split="valid" if r.split == "valid" else "train") for r in target]
    (told,) = transfer(alone, given, split="column").card["transfer"]["sources"]
    assert told["left_out_as_relatives"] >= 40  # every training protein chooses
    assert told["with_relatives_in_target_training"] == 0


def test_a_source_of_nothing_but_relatives_is_refused():
    target = [replace(r, split="valid" if n < 12 else "train") for n, r in enumerate(proteins())]
    with pytest.raises(LabelError, match="source copies: no protein of 40 is left, as 40 resemble"):
        transfer(target, [Source("copies", target)], split="column")


def test_a_checkpoint_belongs_to_one_split(tmp_path):
    options = {"checkpoint": tmp_path / "state.safetensors", "lam": 1.0}
    transfer(proteins(), [Source("other", sources())], **options)
    with pytest.raises(UsageError, match="belongs to other data or options"):
        transfer(proteins(), [Source("other", sources())], split="random", **options)


@pytest.mark.parametrize("names", [("a", "a"), ("target",)])
def test_each_source_has_a_name_of_its_own(names):
    with pytest.raises(UsageError, match="needs a name of its own"):
        transfer(proteins(), [Source(name, sources()) for name in names])


def test_a_source_of_one_class_is_refused_before_anything_is_embedded():
    alike = [replace(record, label="one") for record in sources()]
    with pytest.raises(LabelError, match=r"source alike: .*at least two classes"):
        transfer(proteins(), [Source("alike", alike)])


def test_transfer_of_residues_is_refused():
    rows = [replace(r, label="".join("oi"[c in OILY] for c in r.sequence)) for r in proteins()]
    with pytest.raises(UsageError, match="transfer is between labels of proteins"):
        transfer(rows, [Source("other", sources())], pool="mean")
    with pytest.raises(UsageError, match="source rows: its labels are of residues"):
        transfer(proteins(), [Source("rows", rows)])


def test_only_training_rows_of_a_source_are_taken_where_it_has_a_split(caplog):
    rows = [replace(record, split=("train", "test")[n % 2]) for n, record in enumerate(sources())]
    with caplog.at_level(logging.INFO, logger="bioxfer"):
        assert len(keep_training_rows("s.csv", rows)) == 20
    assert "source s.csv: 20 of 40 rows are of its split train" in caplog.text
    assert len(keep_training_rows("s.csv", sources())) == 40


def test_the_command_writes_head_curve_and_page(tmp_path, capsys):
    (tmp_path / "target.csv").write_text(table(proteins(), "id", "sequence", "label"))
    (tmp_path / "source.csv").write_text(table(sources(), "id", "sequence", "label"))
    arguments = [
        "transfer", tmp_path / "target.csv", "--source", tmp_path / "source.csv", "--cluster-by", "kmer",
        "-o", tmp_path / "h.safetensors", "--model", write_weights(tmp_path), "--head", "linear",
        "--lam", "1", "--sizes", "8", "--draws", "1", "--curve", tmp_path / "curve.csv",
        "--checkpoint", tmp_path / "state.safetensors",
    ]  # fmt: skip
    done = run(*arguments)
    assert done.code == 0, done.err
    assert "transfer from source.csv (" in done.out.decode()
    assert "sources, step 20: held-out loss source.csv" in done.err
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == CURVE_COLUMNS
    assert [row["way"] for row in rows] == ["target_only", "sequential", "joint"] * 2
    assert rows[0]["gain"] == "" != rows[1]["gain"]
    first = (tmp_path / "h.safetensors").read_bytes()
    again = run(*arguments, "--overwrite")
    assert again.code == 0, again.err
    assert "sources: taken from the checkpoint" in again.err
    assert (tmp_path / "h.safetensors").read_bytes() == first
    other = run(*arguments, "--overwrite", "--seed", "1")
    assert other.code == 2
    assert "belongs to other data or options" in other.err
    (tmp_path / "new.csv").write_text(table(proteins(4, seed=9), "id", "sequence"))
    told = run(
        "predict", tmp_path / "new.csv", "-o", "-", "--head", tmp_path / "h.safetensors",
        "--model", tmp_path / "toy.safetensors",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert len(told.out.splitlines()) == 5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lam", "0"], "lam 0 is no weight of the target's loss"),
        (["--sizes", "a"], "--sizes a: give numbers of proteins"),
        (["--sizes", "1"], "make no learning curve"),
        (["--head", "light-attention"], "--head"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(tmp_path, extra, message):
    (tmp_path / "target.csv").write_text(table(proteins(), "id", "sequence", "label"))
    (tmp_path / "source.csv").write_text(table(sources(), "id", "sequence", "label"))
    done = run(
        "transfer", tmp_path / "target.csv", "--source", tmp_path / "source.csv", "--cluster-by", "kmer",
        "-o", tmp_path / "h.safetensors", "--model", write_weights(tmp_path), *extra,
    )  # fmt: skip
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "h.safetensors").exists()


def test_low_rank_changes_are_compared_and_written_beside_the_head(tmp_path):
    dice = random.Random(5)
    bent = []
    for number, record in enumerate(proteins(60, seed=2)):
        letters, label = ((OILY, "even"), (SALTY, "odd"))[number % 2]
        bent.append(replace(record, sequence="M" + "".join(dice.choices(letters, k=30)), label=label))
    weights = write_weights(tmp_path)
    trained = transfer(
        bent, [Source("other", sources(60))], trunk="lora", rank=2, epochs=2, backbone=str(weights),
        adapter=tmp_path / "h.adapter.safetensors",
    )  # fmt: skip
    card = trained.card["transfer"]
    assert card["trunk"] == {"kind": "lora", "rank": 2, "epochs": 2}
    assert set(card["ways"]) == {"target_only", "sequential", "joint"}
    assert trained.card["split"]["dev"] > 0
    written = (tmp_path / "h.adapter.safetensors").exists()
    assert written == (card["chosen"] != "target_only")
    if written:
        adapted = load_backbone(tmp_path / "h.adapter.safetensors")
        assert (adapted.fingerprint, adapted.name) == (trained.fingerprint, trained.backbone)
    else:
        assert trained.fingerprint == backbone().fingerprint


def test_sources_are_translated_as_the_target_is(tmp_path, caplog):
    codon = {"M": "ATG", "A": "GCT", "I": "ATT", "L": "CTT", "F": "TTT", "V": "GTT", "W": "TGG", "D": "GAT"}
    codon |= {"E": "GAA", "K": "AAA", "R": "CGT", "N": "AAT", "Q": "CAA", "S": "TCT", "G": "GGT", "T": "ACT"}

    def genes(records):
        return [replace(r, sequence="".join(codon[c] for c in r.sequence)) for r in records]

    (tmp_path / "target.csv").write_text(table(genes(proteins()), "id", "sequence", "label"))
    (tmp_path / "source.csv").write_text(table(genes(sources()), "id", "sequence", "label"))
    done = run(
        "transfer", tmp_path / "target.csv", "--source", tmp_path / "source.csv", "--cluster-by", "kmer",
        "-o", tmp_path / "h.safetensors", "--model", write_weights(tmp_path), "--head", "linear",
        "--lam", "1", "--sizes", "500", "--translate", "cds",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "looks like nucleotides" not in done.err
    assert "500 proteins: left out of the learning curve, as 500 proteins are no part of" in done.out.decode()


def test_low_rank_changes_are_of_the_last_layer_and_have_no_curve(tmp_path):
    with pytest.raises(UsageError, match="low-rank changes are trained for the last layer, not 1"):
        transfer(proteins(), [Source("other", sources())], trunk="lora", adapter=tmp_path / "a", layer=1)
    (tmp_path / "target.csv").write_text(table(proteins(), "id", "sequence", "label"))
    (tmp_path / "source.csv").write_text(table(sources(), "id", "sequence", "label"))
    done = run(
        "transfer", tmp_path / "target.csv", "--source", tmp_path / "source.csv", "--trunk", "lora",
        "-o", tmp_path / "h.safetensors", "--model", write_weights(tmp_path), "--curve", tmp_path / "c.csv",
    )  # fmt: skip
    assert done.code == 2
    assert "leave --curve out" in done.err


def test_low_rank_changes_need_a_file():
    with pytest.raises(UsageError, match="low-rank changes need a file"):
        transfer(proteins(), [Source("other", sources())], trunk="lora")
