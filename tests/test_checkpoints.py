"""Checkpoints: gone on from whole, or refused in one sentence."""

from __future__ import annotations

import json
import random

import pytest
import torch

from bioxfer.checkpoints import read_checkpoint, restoring, write_checkpoint
from bioxfer.errors import UsageError, WeightsError

STATE = {"counts": [3, 1.5], "note": '"sha256":"' + "0" * 64 + '"', "list": [{"a": None}]}
TENSORS = {
    "a": torch.arange(6).reshape(2, 3),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    'c"sha256":"' + "0" * 64: torch.ones(0),
}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "state", STATE, TENSORS, sort="a test")
    return tmp_path / "state"


def test_what_was_written_is_read(path):
    state, tensors = read_checkpoint(path, sort="a test")
    assert state == STATE
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_f21_every_damaged_byte_is_noticed(path):
    """A state that was bent on the disk was trained on without a word."""
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 200)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(WeightsError, match="not a checkpoint of a test by this version, or damaged"):
            read_checkpoint(path, sort="a test")
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="not a checkpoint of a test"):
            read_checkpoint(path, sort="a test")


def test_a_checkpoint_of_something_else_is_refused(path, tmp_path):
    with pytest.raises(WeightsError, match=r"not a checkpoint of a meal .*\(it is one of a test\)"):
        read_checkpoint(path, sort="a meal")
    with pytest.raises(WeightsError, match=r"nothing: the checkpoint cannot be read \(No such file"):
        read_checkpoint(tmp_path / "nothing", sort="a test")
    write_checkpoint(path, ["no object"], {}, sort="a test")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        read_checkpoint(path, sort="a test")


def test_a_state_that_does_not_fit_is_said_with_its_file(path):
    for error in (KeyError("counts"), RuntimeError("size\n\tmismatch"), ValueError("?"), AttributeError("x")):
        match = r"state: what the checkpoint holds does not fit together \("
        with pytest.raises(WeightsError, match=match), restoring(path):
            raise error
    with pytest.raises(UsageError, match="other options"), restoring(path):
        raise UsageError("other options")
    with pytest.raises(KeyboardInterrupt), restoring(path):
        raise KeyboardInterrupt


def test_the_state_is_json_and_no_pickle(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])["__metadata__"]
    assert set(told) == {"bioxfer-checkpoint", "sha256"}
