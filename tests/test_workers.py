"""Batches side by side: order kept, errors where they belong, no thread left behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from toys import bits_stand_alone

from bioxfer.backbones.compact import random_backbone
from bioxfer.embedding import embed_records
from bioxfer.sequences import SequenceRecord
from bioxfer.workers import side_by_side


def _running():
    """All threads but those of the kernels, which stay for the next product."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("bioxfer-kernel")}


@pytest.fixture(autouse=True)
def _threads():
    before, running = torch.get_num_threads(), _running()
    torch.set_num_threads(3)
    yield
    assert _running() == running
    torch.set_num_threads(before)


def test_results_come_in_order_and_from_several_threads():
    seen = set()

    def work(item):
        seen.add(threading.get_ident())
        time.sleep(0.002 * (item % 5))
        return item * item

    assert list(side_by_side(work, range(40), workers=3)) == [item * item for item in range(40)]
    assert len(seen) == 3
    assert threading.get_ident() not in seen


def test_workers_compute_with_one_thread_and_leave_the_callers_number():
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(9), workers=3)) == {1}
    assert torch.get_num_threads() == 3
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_an_error_is_raised_in_place_of_its_result():
    def work(item):
        if item == 4:
            raise ZeroDivisionError("four")
        return item

    results = side_by_side(work, range(50), workers=2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="four"):
        next(results)


def test_few_results_wait_for_a_slow_reader():
    begun = []
    results = side_by_side(lambda item: begun.append(item) or item, range(1000), workers=2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(begun) <= 5
    results.close()


def test_whoever_leaves_early_does_not_wait_for_the_batch():
    def endless(item):
        if item == 0:
            return item
        while True:
            time.sleep(0.01)

    results = side_by_side(endless, range(10), workers=2)
    assert next(results) == 0
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 2


def test_nothing_to_do_is_nothing_done():
    assert list(side_by_side(str, [], workers=2)) == []
    (row,) = embed_records([SequenceRecord("empty", "")], random_backbone())
    assert row.status == "skipped"


def test_workers_and_one_thread_give_the_same_bits():
    backbone = random_backbone(width=128, layers=2)
    records = [SequenceRecord(f"p{n}", "ACDEFGHIKLMNPQRSTVWY"[n % 20 :] * (1 + n % 7)) for n in range(60)]

    def run(tokens):
        rows = embed_records(records, backbone, pools=("mean", "max"), batch_tokens=tokens)
        return [row.vector("mean+max") for row in rows]

    side = run(200)
    torch.set_num_threads(1)
    alone = run(10_000)
    exact = bits_stand_alone()
    for a, b in zip(side, alone, strict=True):
        assert a.tobytes() == b.tobytes() if exact else np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def test_an_error_in_a_worker_ends_the_run():
    class Breaking:
        concurrent = True

        def __init__(self):
            self.inner = random_backbone()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def represent(self, sequences, *, layers):
            if "W" in sequences[0]:
                raise RuntimeError("broken")
            return self.inner.represent(sequences, layers=layers)

    records = [SequenceRecord(f"p{n}", "W" * n if n == 20 else "A" * n) for n in range(1, 40)]
    with pytest.raises(RuntimeError, match="broken"):
        list(embed_records(records, Breaking(), batch_tokens=32))


def test_a_thread_that_cannot_start_is_an_error_and_no_hang(monkeypatch):
    started, start = [], threading.Thread.start

    def some(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", some)
    with pytest.raises(RuntimeError, match="can't start"):
        list(side_by_side(str, range(3), workers=2))


def test_workers_share_the_threads():
    torch.set_num_threads(5)
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(4), workers=2)) == {2}
    torch.set_num_threads(3)


def test_a_protein_that_lacks_memory_beside_others_gets_it_alone():
    class Cramped:
        concurrent = True

        def __init__(self):
            self.inner = random_backbone()
            self.running = 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def represent(self, sequences, *, layers):
            self.running += 1
            try:
                time.sleep(0.02)
                if self.running > 1:
                    raise MemoryError
                return self.inner.represent(sequences, layers=layers)
            finally:
                self.running -= 1

    records = [SequenceRecord(f"p{n}", "ACDEFGHIKL" * n) for n in range(1, 9)]
    backbone = Cramped()
    found = list(embed_records(records, backbone, batch_tokens=32))
    assert [row.record.id for row in found] == [record.id for record in records]
    assert {(row.status, row.message) for row in found} == {("ok", "")}


def test_a_backbone_may_say_its_device_in_words():
    class Wordy:
        device = "cpu"
        concurrent = True

        def __init__(self):
            self.inner = random_backbone()

        def __getattr__(self, name):
            return getattr(self.inner, name)

    found = list(embed_records([SequenceRecord("p", "ACD")], Wordy()))
    assert found[0].status == "ok"
