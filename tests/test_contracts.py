"""The eight contracts of the house, one test each, held against the command line as a user meets it.

What lies beneath is held where it is made: rows and context in test_embedding.py, exactness in test_esm.py,
whole files in test_output.py and test_cache.py, heads in test_heads.py, cards in test_transfer.py,
downloads in test_downloads.py.
"""

from __future__ import annotations

import csv
import io
import pickle
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import test_esm
import torch
from safetensors import safe_open
from toys import backbone, fasta, head, proteins, run, write_head, write_weights

from bioxfer.backbones import list_backbones
from bioxfer.backbones.compact import CompactBackbone
from bioxfer.backbones.kernels import INSTRUCTIONS
from bioxfer.embedding import embed
from bioxfer.io import read_sequences
from bioxfer.prediction import list_heads, load_head

ODD = {  # as read, and what is left of it as residues
    "sp|P01542|CRAM": ("TTCCPSIVARSNFNVCRLPG", "TTCCPSIVARSNFNVCRLPG"),
    "empty": ("", ""),
    "lower": ("mkv law", "MKVLAW"),
    "stop": ("MKV*", "MKV"),
    "inner*": ("MK*V", "MKXV"),
    "<mask>": ("MK<mask>", "MKXMASKX"),
    "ß": ("MKßV", None),
    "rare": ("UOBZX", "UOBZX"),
    "copy": ("MKVLAW", "MKVLAW"),
    "NA": ("M", "M"),
    "long": ("MKVLAWGDES" * 15, "MKVLAWGDES" * 15),
    "J7": ("J7", "XX"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_weights(tmp_path)
    write_head(tmp_path)
    (tmp_path / "odd.fasta").write_text("".join(f">{name}\n{pair[0]}\n" for name, pair in ODD.items()))
    return tmp_path


def predict(folder: Path, source: object = "odd.fasta", *options: object, out: object = "-"):
    model = ["--head", folder / "taste.safetensors", "--model", folder / "toy.safetensors"]
    return run("predict", folder / str(source), "-o", out, *model, *options)


def rows_of(out: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out.decode())))


def test_contract_1_every_record_has_its_row_in_order(folder):
    for options in ([], ["--long", "skip", "--on-invalid", "skip"], ["--batch-tokens", "1"]):
        rows = rows_of(predict(folder, "odd.fasta", *options).out)
        assert [row["id"] for row in rows] == list(ODD)
        for row in rows:
            assert row["status"] in {"ok", "windowed", "truncated", "skipped", "failed"}
            assert row["length"].isdigit()
            assert row["message"] or row["status"] == "ok"
            assert bool(row["taste"]) == (row["status"] in {"ok", "windowed", "truncated"})


def test_contract_2_tokens_equal_residues(folder, monkeypatch):
    seen: set[str] = set()
    original = CompactBackbone.represent

    def represent(self, sequences, *, layers):
        seen.update(sequences)
        return original(self, sequences, layers=layers)

    monkeypatch.setattr(CompactBackbone, "represent", represent)
    out = folder / "vectors.npz"
    options = ["--model", folder / "toy.safetensors", "--per-residue"]
    assert run("embed", folder / "odd.fasta", "-o", out, *options).code == 0
    with np.load(out) as found:
        counted = np.diff(found["offsets"])
        messages = dict(zip(found["ids"].tolist(), found["messages"].tolist(), strict=True))
        np.testing.assert_array_equal(counted, found["lengths"])
        for name, count in zip(found["ids"].tolist(), counted.tolist(), strict=True):
            read, residues = ODD[name]
            assert count == (len(read) if residues is None else len(residues))
            invalid = ("MKXV" if residues is None else residues).count("X") - read.count("X")
            assert (f"{invalid} residue" in messages[name]) == (invalid > 0)
    assert {residues for _, residues in ODD.values() if residues and len(residues) < 60} <= seen


def test_contract_3_a_result_is_free_of_context(demo):
    """On the embedded backbone and real proteins; test_embedding.py holds bf16 and every pooling."""
    records = read_sequences(demo)[::3]
    options = {"pool": "mean+max", "model": "compact"}
    alone = [embed([record], threads=1, **options).vectors[0] for record in records]
    shuffled = random.Random(0).sample(records, len(records)) + records[:3]
    threads = torch.get_num_threads()
    try:
        together = embed(shuffled, threads=2, batch_tokens=1500, **options)
    finally:
        torch.set_num_threads(threads)
    place = {record.id: number for number, record in enumerate(records)}
    for record, vector in zip(shuffled, together.vectors, strict=True):
        wanted = alone[place[record.id]]
        assert np.abs(vector - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_contract_4_every_family_member_is_held_against_fair_esm():
    """The comparison itself, every layer at 1e-5, is test_esm.py's; here none may be missing from it."""
    compared = set(test_esm.FAMILY)
    for info in list_backbones():
        if info.where == "embedded":
            continue
        name = info.name[:-1] + "1" if info.family == "ESM-1v" else info.name  # five seeds of one shape
        assert name in compared, f"{info.name} is not compared with fair-esm"
    marks = test_esm.test_every_layer_of_every_family_member_equals_fair_esm.pytestmark
    ways = {mark.args[0]: set(mark.args[1]) for mark in marks if mark.name == "parametrize"}
    assert ways == {"name": compared, "kernels": {"off", *INSTRUCTIONS}}
    assert test_esm._assert_equal.__kwdefaults__ == {"tolerance": 1e-5}


def test_contract_5_the_output_is_whole_or_as_it_was(folder, monkeypatch):
    """In this process, at every batch; test_cli.py sends real signals."""
    (folder / "in.fasta").write_text(fasta(proteins(6)))
    out = folder / "out.csv"
    whole = predict(folder, "in.fasta", "--no-resume").out
    original = CompactBackbone.represent
    cuts = 0
    while cuts < 10:
        calls = iter(range(100))

        def represent(self, sequences, *, layers, calls=calls):
            if next(calls) == 1:  # one batch more is finished in each run
                raise KeyboardInterrupt
            return original(self, sequences, layers=layers)

        out.write_text("from before")
        monkeypatch.setattr(CompactBackbone, "represent", represent)
        ended = predict(folder, "in.fasta", "--batch-tokens", "1", "--overwrite", out=out)
        assert not [path for path in folder.iterdir() if path.name.startswith(".bioxfer")]
        if ended.code == 0:
            break
        assert (ended.code, out.read_text()) == (130, "from before")
        cuts += 1
    assert cuts == 5  # each cut run left one more batch done, and none was lost
    assert out.read_bytes() == whole


class Canary:
    def __reduce__(self):
        return (pytest.fail, ("the code in a pickle was run",))


def test_contract_6_no_pickle_is_written_and_none_is_run(folder):
    """Of the sources test_architecture.py says the same."""
    run("embed", folder / "odd.fasta", "-o", folder / "v.npz", "--model", folder / "toy.safetensors")
    with np.load(folder / "v.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)
    for name in ("taste.safetensors", "toy.safetensors"):
        with safe_open(folder / name, framework="np") as file:
            assert file.metadata()
    for name in ("evil.safetensors", "evil.pt"):
        (folder / name).write_bytes(pickle.dumps(Canary()))
    torch.save({"model": Canary()}, folder / "zipped.pt")
    for options in (
        ["--head", folder / "evil.safetensors"],
        ["--head", folder / "taste.safetensors", "--model", folder / "evil.safetensors"],
        ["--head", folder / "taste.safetensors", "--model", folder / "evil.pt"],
        ["--head", folder / "taste.safetensors", "--model", folder / "zipped.pt"],
    ):
        code, out, err = run("predict", folder / "odd.fasta", "-o", "-", *options)
        assert (code, out) == (3, b"")
        assert "Traceback" not in err


@pytest.mark.parametrize("name", ["a new head", *list_heads()])
def test_contract_7_a_head_comes_with_its_numbers(name):
    card = head().card if name == "a new head" else load_head(name).card
    assert len(card["data"]["sha256"]) == 64
    assert card["data"]["licence"]
    assert card["split"]["how"]
    assert min(card["split"][side] for side in ("train", "valid", "train_clusters", "valid_clusters")) > 0
    assert card["intended_use"]
    assert card["limits"]
    assert "homology clusters" in card["intervals"]
    for scores in (card["metrics"], *(found["metrics"] for found in card["baselines"].values())):
        for score in scores.values():
            low, high = score["ci95"]
            # 0.005: balanced accuracy counts the classes present, and a draw of clusters may lack a rare one
            assert low - 0.005 <= score["value"] <= high + 0.005
    simple = {"residue", "window15"} if card["task"] == "residue-class" else {"composition", "nearest"}
    assert {"majority"} | simple <= set(card["baselines"])
    if card["task"] == "regression":
        assert card["uncertainty"]["halfwidth90"] > 0
    else:
        assert 0 <= card["calibration"]["ece_after"] <= 1
        assert 0 <= card["calibration"]["ece_before"] <= 1


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_contract_8_offline_opens_no_socket(folder, monkeypatch, demo, how):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "create_server"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    flag = ["--offline"] * (how == "flag")
    if how == "variable":
        monkeypatch.setenv("BIOXFER_OFFLINE", "1")
    assert run("embed", demo, "-o", folder / "v.csv", *flag).code == 0  # the embedded backbone
    assert predict(folder, "odd.fasta", *flag).code == 0
    assert backbone().fingerprint == head().fingerprint
    code, _, err = run("embed", demo, "-o", folder / "w.csv", "--model", "esm2_t6_8M_UR50D", *flag)
    assert code == 3
    assert "bioxfer models download" in err
    assert not (folder / "w.csv").exists()
