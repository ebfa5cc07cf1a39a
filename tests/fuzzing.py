"""What is fuzzed: valid files, ways to spoil them, and what must hold whatever a file holds.

A target takes bytes. Either they are read right, or one `BioxferError` of one sentence says what is wrong;
nothing else is raised, memory and time are bounded, and no number or text is taken that was not there.
Mutations know the layout of a file: lengths, checksums and hashes are made to fit again, so that what lies
behind them is reached.
"""

from __future__ import annotations

import bz2
import contextlib
import copy
import functools
import gzip
import io
import json
import logging
import lzma
import re
import signal
import sqlite3
import struct
import tempfile
import threading
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from bioxfer.errors import BioxferError
from bioxfer.sequences import SequenceRecord

SECONDS = 5.0  # of the processor's time, for one file of a few kilobytes
MEMORY = 3 << 30  # bytes of addresses beyond those in use; torch's threads and maps take some
LOGGED = 20  # messages about one file

Mutate = Callable[[bytes, Random], bytes]


class HangError(BaseException):
    """Time is up; no ``except Exception`` on the way may take it."""


@dataclass(frozen=True)
class Target:
    """Bytes to a check of what is made of them.

    Attributes
    ----------
    name : str
        Of the file that the bytes are written to; its suffix may decide how they are read.
    seeds : callable
        Returns valid files.
    mutate : callable
        Spoils the bytes of one, knowing its layout.
    check : callable
        Reads the file and asserts what must hold of what was read.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    check: Callable[[Path], object]


def examine(target: Target, data: bytes, folder: Path) -> str:
    """Hold a target against some bytes; return ``"accepted"`` or the class of the error that refused them."""
    path = folder / target.name
    path.write_bytes(data)
    heard = _Counter()
    log = logging.getLogger("bioxfer")
    log.addHandler(heard)
    propagates, log.propagate = log.propagate, False
    try:
        with warnings.catch_warnings(record=True) as given, _time_limit(SECONDS):
            warnings.simplefilter("always")
            try:
                target.check(path)
            except BioxferError as error:
                check_sentence(str(error), path)
                return type(error).__name__
            assert len(given) + heard.count <= LOGGED, [str(each.message) for each in given[:3]]
        return "accepted"
    finally:
        log.removeHandler(heard)
        log.propagate = propagates


def check_sentence(message: str, path: Path) -> None:
    """Assert that a message is one short sentence that names the file and sends nothing to a terminal."""
    assert path.name in message, message
    assert len(message) < 1000, len(message)
    strange = [c for c in message if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    assert not strange, message


class _Counter(logging.Handler):
    """Counts messages, and makes each, as a handler of the user's would."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self.count += 1


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    # The processor's time and not the clock's: a busy machine is no hang.
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Let this process take `MEMORY` more bytes of addresses and no more, where the system can."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# --- mutations ----------------------------------------------------------------------------------------

_ODD_BYTES = (
    b"\0", b"\r", b"\n", b"\r\n", b">", b">>", b"<", b'"', b'""', b",", b"\t", b";", b"\xef\xbb\xbf", b"\xff",
    b"\xe9", b"\x1b[31m", b"\x7f", b"\xc2\x85", b"\xe2\x80\xa8", b"*", b"-", b" ", b"NA", b"=1+1", b"id",
    b"\x1f\x8b", b"BZh9", b"../", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff\xff\xff\xff\x7f",
)  # fmt: skip


def spoil_bytes(data: bytes, dice: Random) -> bytes:
    """Flip, cut, insert, double, move or overwrite; a few times."""
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        place, end = sorted((dice.randint(0, len(data)), dice.randint(0, len(data))))
        end = min(end, place + dice.choice((1, 2, 8, 64, 4096)))
        match dice.randrange(7):
            case 0 if data:
                at = min(place, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:place] + data[end:]
            case 2:
                data = data[:place] + dice.choice(_ODD_BYTES) * dice.choice((1, 1, 2, 300)) + data[place:]
            case 3:
                data = data[:end] + data[place:]
            case 4:
                to = dice.randint(0, len(data))
                data = data[:to] + data[place:end] + data[to:]
            case 5:
                data = data[:place] + dice.randbytes(end - place) + data[end:]
            case 6:
                data = data[:place]
    return data


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**40, 2**63, -(2**63), 10**400, 0.0, -0.5, 0.5, 1e-320, 1e308,
    -1e308, float("nan"), float("inf"), "", "a", "x" * 5000, "two\nlines", "\x1b[31mred\x07", "\ud800",
    "\udce9", "\u2028", "../../etc", "nan", "1", [], {}, [[]], [None], ["a", "a"], [1, 2], {"a": 1}, {"": {}},
    ["a"] * 3000,
)  # fmt: skip


def spoil_value(value: Any, dice: Random) -> Any:
    """Exchange, drop, add or swap values of a JSON value, a few times."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return dice.choice(_ODD_VALUES)
        holder, key = dice.choice(places)
        match dice.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(dice.choice(_ODD_VALUES))
            case 2:
                del holder[key]
            case 3:
                other, place = dice.choice(places)
                with contextlib.suppress(KeyError, IndexError):
                    holder[key] = copy.deepcopy(other[place])
            case 4:
                holder[key] = _nudged(holder[key], dice)
            case 5 if isinstance(holder, dict):
                holder[dice.choice(("", "extra", "__class__", "x" * 3000, "two\nlines", key + "_"))] = 1
            case 5:
                holder.insert(key, copy.deepcopy(dice.choice(_ODD_VALUES)))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as what holds it and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _nudged(value: Any, dice: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        same = float(value) if abs(value) < 1e300 else value
        return dice.choice((value + 1, value - 1, -value, value * 1000, same, str(value)))
    if isinstance(value, str):
        return spoil_bytes(value.encode("utf-8", "replace"), dice).decode("utf-8", "surrogateescape")
    return [value]


def _json(value: Any, dice: Random) -> str:
    text = json.dumps(value)
    deep = dice.randrange(60)
    if deep == 0:  # as deep as a parser's stack, or deeper
        text = "[" * (count := dice.choice((500, 990, 100_000))) + "]" * count
    elif deep == 1 and text.startswith("{"):  # a key twice
        text = text[:-1] + "," + text[1:] if len(text) > 2 else text
    elif deep == 2:
        text = spoil_bytes(text.encode(), dice).decode("utf-8", "replace")
    return text


# --- safetensors --------------------------------------------------------------------------------------

_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, np.nan, np.inf, -np.inf, 65504.0)
_TYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "BOOL",
    "F8_E4M3",
    "C64",
    "XX",
    "",
)


def spoil_container(data: bytes, dice: Random, *, key: str, seal: Callable[[Any, Any], str | None]) -> bytes:
    """Spoil a safetensors file: its bytes, its outer header, our JSON inside that, or its tensors.

    `seal` gives the hash of our JSON and of all tensors, where there is one; it is stated anew.
    """
    how = dice.randrange(10)
    if how == 0:
        return spoil_bytes(data, dice)
    (size,) = struct.unpack("<Q", data[:8])
    outer, buffer = json.loads(data[8 : 8 + size]), data[8 + size :]
    if how in (1, 2):
        outer = _spoil_outer(outer, dice)
        text = _json(outer, dice).encode()
        length = len(text) if dice.randrange(8) else dice.choice((0, 1, size - 1, 2**20, 2**40, 2**64 - 1))
        return struct.pack("<Q", length) + text + buffer
    from safetensors.torch import load, save

    tensors, texts = load(data), dict(outer["__metadata__"])
    if how in (3, 4, 5):
        tensors = _spoil_tensors(tensors, dice)
    spoiled = how > 5 or not dice.randrange(4)
    inner = json.loads(texts[key])
    if spoiled:
        if not dice.randrange(6):  # what is in the metadata beside our JSON
            found = spoil_value(texts, dice)
            texts = {str(n): str(t) for n, t in found.items()} if isinstance(found, dict) else {}
        inner = spoil_value(inner, dice)
    if isinstance(inner, dict) and "sha256" in inner and dice.randrange(20):
        del inner["sha256"]
        with contextlib.suppress(ValueError, RecursionError, TypeError):  # NaN has no hash
            inner["sha256"] = seal(inner, tensors)
    if key in texts or not dice.randrange(3):
        texts[key] = _json(inner, dice)
    clean = {_sound(name): _sound(text) for name, text in texts.items()}
    return save({_sound(name): tensor for name, tensor in tensors.items()}, metadata=clean)


def _sound(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _spoil_outer(outer: dict[str, Any], dice: Random) -> Any:
    names = [name for name in outer if name != "__metadata__"]
    if not names or not dice.randrange(4):
        return spoil_value(outer, dice)
    one, other = outer[dice.choice(names)], outer[dice.choice(names)]
    match dice.randrange(5):
        case 0:
            one["dtype"] = dice.choice(_TYPES)
        case 1:
            one["shape"] = dice.choice(([], [0], [2**40], [2**32, 2**32], [-1], [1, *one["shape"]], [2**63]))
        case 2:
            one["data_offsets"] = copy.deepcopy(other["data_offsets"])  # two tensors in one place
        case 3:
            one["data_offsets"] = [
                dice.choice((0, 1, 2**40, 2**64 - 1)),
                dice.choice((0, 8, 2**40, 2**64 - 1)),
            ]
        case 4:
            one.update(spoil_value(one, dice))
    return outer


def _spoil_tensors(tensors: dict[str, torch.Tensor], dice: Random) -> dict[str, torch.Tensor]:
    tensors = dict(tensors)
    for _ in range(dice.choice((1, 1, 2))):
        if not tensors:
            return tensors
        name = dice.choice(sorted(tensors))
        tensor = tensors[name].clone()
        match dice.randrange(9):
            case 0:
                del tensors[name]
            case 1:
                tensors[dice.choice(("extra", "", "head.extra", name + ".a", "two\nlines", "x" * 3000))] = (
                    tensor
                )
            case 2:
                kind = dice.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
                                    torch.int32, torch.bool, torch.uint16))  # fmt: skip
                tensors[name] = torch.nan_to_num(tensor).to(kind)
            case 3 if tensor.numel():
                flat = tensor.reshape(-1)
                value = dice.choice(_FLOATS if tensor.is_floating_point() else (0, 1, 2, 127))
                flat[dice.randrange(flat.numel())] = value
                tensors[name] = flat.reshape(tensor.shape)
            case 4 if tensor.ndim:
                tensors[name] = tensor[: dice.randint(0, max(0, tensor.shape[0] - 1))].contiguous()
            case 5:
                tensors[name] = dice.choice(
                    (
                        tensor[None],
                        tensor.reshape(-1),
                        tensor.T.contiguous() if tensor.ndim == 2 else tensor[None, None],
                    )
                )
            case 6 if tensor.is_floating_point():
                tensors[name] = (tensor * dice.choice((0.0, -1.0, 1e-30, 1e30, 1e38))).contiguous()
            case 7:
                other = dice.choice(sorted(tensors))
                tensors[name], tensors[other] = tensors[other].clone(), tensor
            case 8:
                tensors[name] = torch.zeros(dice.choice(((), (0,), (1,), (3, 0), (2, 2))), dtype=tensor.dtype)
    return tensors


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


# --- heads --------------------------------------------------------------------------------------------


def _seal_head(inner: Any, tensors: dict[str, torch.Tensor]) -> str:
    from bioxfer.headfile import digest

    return digest(inner, _arrays(tensors))


@functools.cache
def _head_files() -> tuple[bytes, ...]:
    """Small heads of each kind and task, every optional part among them, and one with a whole card."""
    import toys
    from test_heads import FEATURES, KINDS, make_head

    from bioxfer.attention import AttentionPool
    from bioxfer.conformal import ConformalScores
    from bioxfer.residue_tasks import ResidueClasses, ResidueValues
    from bioxfer.residues import ResidueHead
    from bioxfer.tasks import Multilabel, Regression

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    pool = AttentionPool(
        **{"value": draw(2, 3, 2), "attention": draw(2, 3, 2), "mean": draw(2), "bias": draw(2)}
    )
    scores = ConformalScores.fit(np.linspace(0, 1, 9))
    plain = make_head()
    several = make_head(task=Multilabel(("in", "out"), 0.4))
    several.index = _with_targets(several.index, np.arange(14).reshape(7, 2) % 2)
    heads: list[Any] = [make_head(kind, threshold=0.3, first=70) for kind in KINDS]
    heads += [
        make_head("blend", task=Regression(50.0, 2.0, 1.5)),
        make_head("mlp", conformal=scores),
        make_head(attention=pool),
        several,
        toys.head(),
    ]
    weights = {
        "linear": {"weight": draw(2, FEATURES), "bias": draw(2)},
        "conv": {
            "weight_in": draw(2, 3, FEATURES), "bias_in": draw(2), "weight_out": draw(2, 2),
            "bias_out": draw(2),
        },
    }  # fmt: skip
    for kind, tensors in weights.items():
        residue = ResidueHead(
            "kind", ResidueClasses(("E", "H")), kind, 2, "compact", "0123456789abcdef",
            {"mean": draw(FEATURES), **tensors}, 1.0, _with_targets(plain.index, np.zeros(7)), {},
        )  # fmt: skip
        heads.append(residue)
    numbers = {"mean": draw(FEATURES), "weight": draw(1, FEATURES), "bias": draw(1)}
    heads.append(
        ResidueHead(
            "turn",
            ResidueValues(1.0, 2.0, 0.5),
            "linear",
            2,
            "compact",
            "0123456789abcdef",
            numbers,
            1.0,
            _with_targets(plain.index, np.zeros(7)),
            {},
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "h.safetensors")
        return tuple(path.read_bytes() for head in heads for _ in [head.save(path)])


def _with_targets(index: Any, targets: np.ndarray) -> Any:
    from dataclasses import replace

    return replace(index, targets=targets.astype(np.int32 if targets.ndim == 1 else np.float32))


def check_head(path: Path) -> None:
    """A head that is read answers with its own labels, or says nothing, and has a page."""
    from bioxfer.cards import describe_card
    from bioxfer.errors import FingerprintError, UsageError
    from bioxfer.heads import TrainedHead
    from bioxfer.prediction import load_head

    head = load_head(path)
    check_page(describe_card(head.card))
    repr(head)
    rows = np.random.default_rng(0).normal(size=(3, head.n_features)).astype(np.float32)
    # numbers near the largest that there are may overflow: such a protein gets no answer
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if isinstance(head, TrainedHead):
            texts = ["MKVAILW", "M", ""]
            decisions = head.predict(rows, texts)
            assert len(decisions) == 3
            for decision in decisions:
                assert np.isnan(decision.score) or isinstance(decision.label, str)
                if head.task.name == "multiclass":
                    assert decision.label in (*head.labels, "", "unknown")
            assert head.predict_proba(rows, texts).shape[0] == 3
            with contextlib.suppress(UsageError):
                assert len(head.predict_sets(rows, texts)) == 3
            if head.attention is not None:
                with contextlib.suppress(FingerprintError):
                    width = head.n_features - head.attention.n_features
                    head.join(np.zeros(width, np.float32), rows[:, :width])
        else:
            cells, _ = head.answer(rows)
            assert len(cells) == 3
            assert all(cell in head.classes or not head.classes for cell in cells)
        found = head.nearest(rows)
    assert all(each.id in (*head.index.ids, "") for each in found)
    assert {head.flag(each.similarity) for each in found} <= {"in-domain", "far", ""}


def spoil_head(data: bytes, dice: Random) -> bytes:
    """Spoil a head file, its hash made to fit."""
    return spoil_container(data, dice, key="bioxfer", seal=_seal_head)


@functools.cache
def _card_heads() -> tuple[bytes, ...]:
    """Heads with whole cards, of each task."""
    import toys

    with tempfile.TemporaryDirectory() as folder:
        paths = [toys.write_head(Path(folder), task, task=task) for task in ("multiclass", "regression")]
        return tuple(path.read_bytes() for path in paths)


def spoil_card(data: bytes, dice: Random) -> bytes:
    """Spoil nothing but the card of a head."""
    from safetensors.torch import load, save

    (size,) = struct.unpack("<Q", data[:8])
    inner = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["bioxfer"])
    tensors = load(data)
    card = spoil_value(inner["card"], dice)
    inner["card"] = card if isinstance(card, dict) else {"card": card}
    inner.pop("sha256")
    with contextlib.suppress(ValueError):
        inner["sha256"] = _seal_head(inner, tensors)
    return save(tensors, metadata={"bioxfer": json.dumps(inner)})


def check_card(path: Path) -> None:
    """A card is shown as a page and as JSON, and drawn, or said not to be of this version."""
    from bioxfer.cards import describe_card
    from bioxfer.errors import UsageError
    from bioxfer.prediction import load_head
    from bioxfer.report import PLOTS

    card = load_head(path).card
    check_page(describe_card(card))
    for draw in PLOTS.values() if path.stat().st_size % 5 == 0 else ():  # which takes longer than the rest
        try:
            draw(card)
        except UsageError as error:
            check_sentence(f"{error} {path.name}", path)


def check_page(page: str) -> None:
    """Assert that a page can be printed and sends no commands to a terminal."""
    page.encode()
    assert not [c for c in page if c != "\n" and unicodedata.category(c) in ("Cc", "Cs")], page


# --- weights ------------------------------------------------------------------------------------------


@functools.cache
def _compact_files() -> tuple[bytes, ...]:
    from bioxfer.backbones.compact import CompactConfig, CompactModel, save_compact

    model = CompactModel(CompactConfig(width=64, layers=1, kernel=3, attention=(1,), window=20))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        save_compact(model, path, card={"corpus": "none", "stages": [{"steps": 3}]})
        return (path.read_bytes(),)


def spoil_compact(data: bytes, dice: Random) -> bytes:
    """Spoil compact weights, their shape or their card."""
    return spoil_container(data, dice, key=dice.choice(("config", "config", "card")), seal=lambda a, b: None)


def check_weights(path: Path) -> None:
    """Weights that are read represent a protein, and have a card."""
    from bioxfer.backbones import load_backbone
    from bioxfer.backbones.compact import read_card

    backbone = load_backbone(path)
    assert isinstance(read_card(path), dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        (found,) = backbone.represent(["MKV"], layers=[backbone.n_layers])
    assert found.residues.shape[:2] == (1, 3)


def check_model_card(path: Path) -> None:
    """What `bioxfer models show` prints of a file."""
    from bioxfer.backbones.adapters import is_adapter, load_adapter
    from bioxfer.backbones.compact import read_card

    card = load_adapter(path).card if is_adapter(path) else read_card(path)
    assert isinstance(card, dict)


@functools.cache
def _adapter_files() -> tuple[bytes, ...]:
    from bioxfer.backbones.adapters import Adapter

    draw = torch.Generator().manual_seed(0)
    pairs = {
        f"blocks.0.{name}": (torch.randn(2, 64, generator=draw), torch.randn(wide, 2, generator=draw))
        for name, wide in (("out", 64), ("up", 256))
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        Adapter("compact", "0123456789abcdef", 2.0, pairs, {"parts": [{"name": "a"}]}).save(path)
        return (path.read_bytes(),)


def _seal_adapter(inner: Any, tensors: dict[str, torch.Tensor]) -> str:
    from bioxfer.backbones.adapters import _digest

    return _digest(inner, tensors)


def spoil_adapter(data: bytes, dice: Random) -> bytes:
    """Spoil an adapter, its hash made to fit."""
    return spoil_container(data, dice, key="bioxfer-lora", seal=_seal_adapter)


def check_adapter(path: Path) -> None:
    """An adapter that is read is one: finite matrices of one rank."""
    from bioxfer.backbones.adapters import is_adapter, load_adapter

    is_adapter(path)
    adapter = load_adapter(path)
    assert len(adapter.fingerprint) == 16
    assert {a.shape[0] for a, _ in adapter.matrices.values()} == {adapter.rank}


@functools.cache
def _esm_files() -> tuple[bytes, ...]:
    import esm
    from test_esm import _checkpoint

    files = []
    torch.manual_seed(0)
    for heads, dropout in ((2, True), (1, False)):
        model = esm.ESM2(num_layers=1, embed_dim=4 * heads, attention_heads=heads, token_dropout=dropout)
        file = io.BytesIO()
        torch.save(_checkpoint(model), file)
        files.append(file.getvalue())
    return tuple(files)


def spoil_member(data: bytes, dice: Random, *, often: str = "") -> bytes:
    """Spoil or drop one member of a zip archive, whose checksums fit again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        members = source.infolist()
        chosen = dice.choice([m.filename for m in members] + 3 * [often or members[0].filename])
        for member in members:
            content = source.read(member)
            if member.filename.endswith(chosen):
                if not dice.randrange(10):
                    continue
                content = spoil_bytes(content, dice)
            target.writestr(member.filename, content)
    return out.getvalue()


def spoil_esm(data: bytes, dice: Random) -> bytes:
    """Spoil a checkpoint: its bytes, one member of the archive, or what it holds."""
    how = dice.randrange(6)
    if how == 0:
        return spoil_bytes(data, dice)
    if how < 3:
        return spoil_member(data, dice, often="data.pkl")
    from argparse import Namespace

    checkpoint = torch.load(io.BytesIO(data), weights_only=False)
    model = dict(checkpoint["model"])
    for _ in range(dice.choice((1, 1, 2))):
        name = dice.choice(sorted(map(str, model)))
        weight = model.get(name)
        if not isinstance(weight, torch.Tensor) or not 0 < weight.numel() < 10**6:
            continue
        if weight.is_meta or weight.layout != torch.strided:
            continue
        match dice.randrange(8):
            case 0:
                with contextlib.suppress(RuntimeError, TypeError, AttributeError):  # spoilt already
                    model = _spoil_tensors(model, dice)
            case 1:
                number = dice.choice(("1", "-1", "7", "999999999", "9" * 5000, "²", "٣", "0x1", ""))
                model[re.sub(r"layers\.0", f"layers.{number}", name)] = weight
            case 2:
                size = dice.choice(((2**40,), (2**20, 2**20), (33, 2**36), (2**36, 8)))
                model[name] = torch.ones(1).expand(size)
            case 3:
                model[name] = torch.empty(weight.shape, device="meta")
            case 4:
                model[name] = weight.to_sparse() if dice.randrange(2) else weight.to(torch.complex64)
            case 5:
                model[name] = dice.choice((None, 1, "x", [1], {"a": 1}, torch.zeros(0), torch.tensor(1.0)))
            case 6:
                model[dice.choice((3, None, ("a",), "encoder.", "encoder.layers.x", "two\nlines"))] = weight
            case 7:
                model[name] = weight.reshape(-1)[0].expand(weight.shape)
    checkpoint["model"] = model
    if not dice.randrange(3):
        options = spoil_value(vars(checkpoint["cfg"]["model"]), dice)
        if isinstance(options, dict) and not dice.randrange(4):
            options[3] = 1
        ways = [options]
        if isinstance(options, dict):
            ways += [Namespace(**{str(k): v for k, v in options.items() if k != "__class__"})]
        checkpoint[dice.choice(("cfg", "args"))] = dice.choice((*ways, {"model": ways[-1]}))
    out = io.BytesIO()
    torch.save(checkpoint, out)
    return out.getvalue()


def check_esm(path: Path) -> None:
    """A checkpoint that is read represents a protein."""
    from bioxfer.backbones.fairesm import load_esm

    backbone = load_esm(path)
    (found,) = backbone.represent(["MKV"], layers=[backbone.n_layers])
    assert found.residues.shape[:2] == (1, 3)


# --- checkpoints --------------------------------------------------------------------------------------

_JOURNAL_KEY = "0123456789abcdef" * 4


@functools.cache
def _journal_files() -> tuple[bytes, ...]:
    from bioxfer.transfer import Journal

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "j.safetensors")
        journal = Journal(path, _JOURNAL_KEY)
        journal.put("trunk", {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2)})
        journal.put("joint 0.1", {"scores": np.linspace(0, 1, 5)})
        return (path.read_bytes(),)


def check_journal(path: Path) -> None:
    """What a journal gives back is what its file holds, and that what was put into it or sealed anew."""
    from safetensors.torch import load

    from bioxfer.checkpoints import _SUM
    from bioxfer.transfer import Journal

    journal = Journal(path, _JOURNAL_KEY)
    data = path.read_bytes()
    held = load(data)
    for name in ("trunk", "joint 0.1"):
        found = {f"{name}:{key}": array for key, array in (journal.get(name) or {}).items()}
        assert sorted(found) == sorted(key for key in held if key.startswith(f"{name}:"))
        for key, array in found.items():
            np.testing.assert_array_equal(array, held[key].numpy(), strict=True)
    if _SUM.findall(data)[:1] == _SUM.findall(_journal_files()[0]):
        trunk, joint = journal.get("trunk"), journal.get("joint 0.1")
        assert trunk is not None
        assert joint is not None
        assert sorted(trunk) == ["bias", "weight"]
        np.testing.assert_array_equal(trunk["weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
        np.testing.assert_array_equal(trunk["bias"], np.ones(2))
        np.testing.assert_array_equal(joint["scores"], np.linspace(0, 1, 5))
    journal.put("more", {"scores": np.arange(3.0)})
    again = Journal(path, _JOURNAL_KEY).get("more")
    assert again is not None
    np.testing.assert_array_equal(again["scores"], np.arange(3.0))


@functools.cache
def _adaptation() -> Any:
    """A training of low-rank changes, and what it is given."""
    import toys

    from bioxfer import lora
    from bioxfer.backbones.adapters import read_base
    from bioxfer.tasks import Multiclass

    with tempfile.TemporaryDirectory() as folder:
        base = read_base(toys.write_weights(Path(folder)))
    targets = np.arange(4) % 2
    part = lora.Part(["MKVLA", "MWWA", "MAAL", "MDEK"], targets, Multiclass(("no", "yes")))
    options = {
        "rank": 1, "scale": 2.0, "epochs": 1, "patience": 1, "rate": 1e-3,
        "batch_tokens": 600, "pool": "mean", "precision": "fp32", "seed": 0,
    }  # fmt: skip
    return lora._Training(base, [part], None, options, device="cpu")


@functools.cache
def _adaptation_files() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        _adaptation().run(checkpoint=path, checkpoint_minutes=1.0, progress=None)
        return (path.read_bytes(),)


def check_adaptation(path: Path) -> None:
    """A checkpoint of low-rank changes is gone on from, or refused."""
    from bioxfer.checkpoints import restoring

    with restoring(path):
        _adaptation().restore(path)


@functools.cache
def _pretraining_files() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        check_pretraining(path)
        return (path.read_bytes(),)


def check_pretraining(path: Path) -> None:
    """A pretraining goes on from its checkpoint, or refuses it."""
    from bioxfer.pretrain import PretrainOptions, pretrain

    corpus = path.with_name("corpus.txt")
    corpus.write_text("MKVLAILWDEKRN\nMWWAGGHHPPQQRR\n")
    options = PretrainOptions(width=64, layers=1, batch_tokens=512, crop=64, long_crop=128, steps=1)
    pretrain([corpus], path.with_name("out.safetensors"), options=options, checkpoint=path)


def spoil_checkpoint(data: bytes, dice: Random) -> bytes:
    """Spoil the bytes of a checkpoint; or its state or its tensors, and state the sum that they then have."""
    if not dice.randrange(4):
        return spoil_bytes(data, dice)
    from safetensors.torch import load

    from bioxfer.checkpoints import _STATE, write_checkpoint

    size = int.from_bytes(data[:8], "little")
    held = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_STATE])
    tensors = load(data)
    if dice.randrange(3):
        held = (
            spoil_value(held, dice)
            if not dice.randrange(8)
            else {**held, "state": spoil_value(held["state"], dice)}
        )
    else:
        tensors = _spoil_tensors(tensors, dice)
    sort, state = (held.get("sort"), held.get("state")) if isinstance(held, dict) else (None, held)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c")
        write_checkpoint(path, state, tensors, sort=sort)
        return path.read_bytes()


# --- the cache ----------------------------------------------------------------------------------------

_VALUES = {
    bytes([number]) * 32: np.random.default_rng(number).normal(size=size).astype(np.float32)
    for number, size in enumerate([(4,), (64,), (3, 5), (700,)])
}


@functools.cache
def _cache_files() -> tuple[bytes, ...]:
    from bioxfer.cache import EmbeddingCache

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.sqlite")
        with EmbeddingCache(path) as cache:
            cache.put_many(_VALUES)
        return (path.read_bytes(),)


_STATEMENTS = (
    "UPDATE bioxfer_embedding_1 SET {column} = {value}",
    "UPDATE bioxfer_embedding_1 SET {column} = {value} "
    "WHERE key = (SELECT min(key) FROM bioxfer_embedding_1)",
    "DELETE FROM bioxfer_embedding_1 WHERE key = (SELECT max(key) FROM bioxfer_embedding_1)",
    "DROP TABLE bioxfer_embedding_1",
    "ALTER TABLE bioxfer_embedding_1 RENAME TO other",
    "ALTER TABLE bioxfer_embedding_1 DROP COLUMN data",
    "ALTER TABLE bioxfer_embedding_1 ADD COLUMN more BLOB",
    "ALTER TABLE bioxfer_embedding_1 RENAME COLUMN data TO daten",
    "CREATE TABLE other (x)",
    "CREATE TRIGGER t BEFORE INSERT ON bioxfer_embedding_1 BEGIN SELECT RAISE(ABORT, 'no'); END",
    "DROP TABLE bioxfer_embedding_1; CREATE VIEW bioxfer_embedding_1 AS SELECT 1 AS key, 2 AS shape, "
    "3 AS data, 4 AS checksum",
    "DROP TABLE bioxfer_embedding_1; CREATE TABLE bioxfer_embedding_1 (key, shape, data, checksum)",
    "PRAGMA application_id = 7",
    "PRAGMA user_version = 7",
    "PRAGMA auto_vacuum = 1; VACUUM",
    "PRAGMA encoding = 'UTF-16'; VACUUM",
    "PRAGMA page_size = 512; VACUUM",
)
_CELLS = (
    "NULL",
    "7",
    "'text'",
    "x''",
    "x'00'",
    "zeroblob(100)",
    "key",
    "1e300",
    "x'33783578'",
    "shape",
    "data",
)


def spoil_cache(data: bytes, dice: Random) -> bytes:
    """Spoil a database: its bytes, or what SQL can make of it, checksums made to fit."""
    if dice.randrange(3):
        return spoil_bytes(data, dice) if data else data
    from bioxfer.cache import _checksum

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.sqlite")
        path.write_bytes(data)
        connection = sqlite3.connect(path)
        try:
            with contextlib.suppress(sqlite3.Error):
                for _ in range(dice.choice((1, 1, 2))):
                    column = dice.choice(("key", "shape", "data", "checksum"))
                    statement = dice.choice((*_STATEMENTS[:2] * 4, *_STATEMENTS))
                    connection.executescript(statement.format(column=column, value=dice.choice(_CELLS)))
                if dice.randrange(2):
                    rows = connection.execute("SELECT key, shape, data FROM bioxfer_embedding_1").fetchall()
                    for key, shape, values in rows:
                        shape = dice.choice((b"", b"x", b"-1", b"4x", b"2x2", b"1_0", b"99999999999", shape))
                        sealed = [shape, _checksum(key, shape, values), key]
                        update = "UPDATE bioxfer_embedding_1 SET shape = ?, checksum = ? WHERE key = ?"
                        connection.execute(update, sealed)
                    connection.commit()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (TypeError, AttributeError):  # cells of other types have no checksum
            connection.rollback()
        finally:
            connection.close()
        return path.read_bytes()


def check_cache(path: Path) -> None:
    """A cache gives back what was put into it, or nothing, and takes values again."""
    from bioxfer.cache import EmbeddingCache

    try:
        with EmbeddingCache(path) as cache:
            for key, value in cache.get_many(_VALUES).items():
                # another shape can only come from a checksum that was made to fit
                assert value.tobytes() == _VALUES[key].tobytes() or value.nbytes != _VALUES[key].nbytes
            len(cache)
            cache.put_many(_VALUES)
            found = cache.get_many(_VALUES)
            assert all(np.array_equal(found[key], value) for key, value in _VALUES.items())
    finally:
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink()


# --- sequences and labels -----------------------------------------------------------------------------

_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\n\r\v\f"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def parse_fasta(data: bytes) -> list[tuple[str, str]] | None:
    """Read FASTA in a few lines of another kind than those that are tested; None where it is none."""
    data = data.removeprefix(_BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    first, *blocks = re.split(rb"(?:^|(?<=\n))(?:\xef\xbb\xbf)?>", data)
    if first.strip() or b"\0" in data:
        return None
    found = []
    for block in blocks:
        header, _, body = block.partition(b"\n")
        sequence = "".join(c for c in _text(body) if c not in _BLANKS)
        found.append((_text(re.split(rb"[ \t\v\f]", header)[0]), sequence))
    ids = [name for name, _ in found]
    return found if all(ids) and len(set(ids)) == len(ids) else None


def parse_table(data: bytes, delimiter: str) -> list[list[str]]:
    """Read the cells of a table after RFC 4180, one character at a time."""
    rows, row, cell, state = [], [], "", "start"
    text = _text(data.removeprefix(_BOM))
    for place, c in enumerate(text):
        if state == "quoted":
            if c == '"':
                state = "quote"
            else:
                cell += c
        elif c == '"' and state == "quote":
            cell, state = cell + c, "quoted"
        elif c == '"' and state == "start":
            state = "quoted"
        elif c == delimiter:
            row, cell, state = [*row, cell], "", "start"
        elif c in "\r\n":
            if c == "\n" and place and text[place - 1] == "\r":
                continue
            if row or cell or state != "start":
                rows.append([*row, cell])
            row, cell, state = [], "", "start"
        else:
            cell, state = cell + c, "plain"
    if row or cell or state != "start":
        rows.append([*row, cell])
    return [row for row in rows if len(row) > 1 or row[0].strip()]


def decompressed(data: bytes) -> bytes:
    """Decompress by each library's own function for whole files."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"BZh"):
        return bz2.decompress(data)
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as stream:
            return stream.read()
    return data


_FASTA = (
    b">sp|P1|A_HUMAN first\nMKVLAILW\nDEKRN\n>b\nMWW*\n\n>NA 1e5\n\n>caf\xe9 \xc3\xa9\nmk<mask>v-J7\n",
    b">a\r\nMKV\r\n>b\r\nMWW\r\n",
    b">a\rMKV\r>b\rMWW",
    _BOM + b"\n \n>a x\nMKV\n" + _BOM + b">b\nMWW",
    b">only\nM",
    b">long " + b"x" * 70_000 + b"\n" + b"MKVLA\n" * 1000 + b">next\nM\n",
    b"",
)


def _packers() -> list[Callable[[bytes], bytes]]:
    packers: list[Callable[[bytes], bytes]] = [
        functools.partial(gzip.compress, mtime=0), bz2.compress, lzma.compress
    ]  # fmt: skip
    with contextlib.suppress(ImportError):
        import zstandard

        packers.append(lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data))
    return packers


def spoil_fasta(data: bytes, dice: Random) -> bytes:
    """Spoil the text, or pack it, whole or in members, and perhaps spoil the archive."""
    for _ in range(dice.choice((0, 1, 1, 2))):
        data = spoil_bytes(data, dice)
    if dice.randrange(3) or len(data) > 50_000:
        return data
    pack = dice.choice(_packers())
    cut = dice.choice((0, len(data) // 2))
    packed = (pack(data[:cut]) if cut else b"") + pack(data[cut:])
    return spoil_bytes(packed, dice) if dice.randrange(2) else packed


def check_fasta(path: Path) -> None:
    """What is read is what the few lines above read; and they read what is refused no better."""
    from bioxfer.errors import InputError
    from bioxfer.io import read_sequences

    try:
        found: list[SequenceRecord] | None = read_sequences(path)
    except InputError:
        data = path.read_bytes()
        if not data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
            assert not data.removeprefix(_BOM).lstrip().startswith(b">") or parse_fasta(data) is None
        raise
    data = decompressed(path.read_bytes())
    if re.match(rb"(?:\s|\xef\xbb\xbf)*(?:>|\Z)", data):
        assert [(r.id, r.sequence) for r in found] == parse_fasta(data)
        for record in found:
            assert record.description.startswith(record.id)
            assert record.line <= 1 + data.count(b"\n") + data.count(b"\r")
    else:
        _check_rows([(r.id, r.sequence) for r in found], data, ("id", "sequence"), ",\t;")


_TABLES = (
    b"id,sequence,label,split\na,MKV,x,train\nb,MWW,y,valid\n",
    b'id;sequence;label\r\n"a;1";MKV;"x""y"\r\nb;MW W;NA\r\n',
    b"id\tlabel\tsplit\tsequence\n007\t1e5\ttest\tMKVAW\nNA\tNA\t\tM\n",
    _BOM + b'\n"id","label","sequence"\n"two\nlines","a,b","M\nK"\n"c","","M"\n',
    b"id,label,fold,sequence\na,HHEE,1,MKVA\nb,EEH-,2,MWWK\nc,HEHE,3,AAAA\n",
    b"id,label,sequence\na,0.5 nan 1.5,MKV\nb,1 2 3,MWW\nc,3 4 5,MAA\n",
    b"id,label,sequence\na,x;y,MKV\nb,y,MWW\nc,x;z,MAA\n",
)


def check_table(path: Path) -> None:
    """The ids and sequences of a table are its cells."""
    from bioxfer.io import read_sequences

    found = [(r.id, r.sequence) for r in read_sequences(path)]
    data = decompressed(path.read_bytes())
    if not data.removeprefix(_BOM).lstrip().startswith(b">"):
        _check_rows(found, data, ("id", "sequence"), _delimiters(path))


_GENBANK = (
    b"LOCUS       T1                        24 bp    DNA     linear   BCT 01-JAN-2026\nDEFINITION  Two.\n"
    b"ACCESSION   T1\nVERSION     T1.1\nFEATURES             Location/Qualifiers\n"
    b'     CDS             join(1..6,10..15)\n                     /gene="a"\n'
    b"                     /transl_except=(pos:4..6,aa:Sec)\n"
    b"     CDS             complement(<1..>24)\n                     /codon_start=2\n"
    b'                     /transl_table=11\n                     /translation="FFFL"\n'
    b"ORIGIN\n        1 atgtgagtaa aataaaaaaa aaaa\n//\n"
    b"LOCUS       T2                         9 bp    DNA     linear   BCT 01-JAN-2026\nDEFINITION  None.\n"
    b"ACCESSION   T2\nVERSION     T2.1\nFEATURES             Location/Qualifiers\n"
    b"     source          1..9\nORIGIN\n        1 atgaaataa\n//\n",
    b"LOCUS       P1                         3 aa            linear   BCT 01-JAN-2026\nDEFINITION  One.\n"
    b"ACCESSION   P1\nVERSION     P1.1\nORIGIN\n        1 mkv\n//\n",
)
_FASTQ = (
    b"@r1 first\nATGAAATAA\n+\nIIIIIIIII\n@r2\nATGA\nAA\n+r2\n@III\n+I\n@r3\n\n+\n\n",
    b"@a\r\nACGT\r\n+\r\nIIII\r\n",
)
_GFF = (
    b"##gff-version 3\nc1\t.\tCDS\t1\t6\t.\t+\t0\tID=a;Parent=t\nc1\t.\tCDS\t10\t15\t.\t+\t0\tID=a;Parent=t\n"
    b"c2\tx\tCDS\t1\t9\t.\t-\t2\tlocus_tag=b%3B;partial=01;transl_table=11;transl_except=(pos:1..3%2Caa:Sec)\n",
    b"c2\t.\tmRNA\t1\t9\t.\t+\t.\tID=m\nc2\t.\tCDS\t1\t3\t.\t+\t0\tID=x;Parent=m\n"
    b"c2\t.\tCDS\t4\t9\t.\t+\t0\tID=y;Parent=m\n##FASTA\n>c2\nACGT\n",
)


def check_nucleotides(path: Path) -> None:
    """Every way to translate gives each record a row, and tells what it did."""
    from bioxfer.genes import Translation
    from bioxfer.io import iter_proteins

    for how in ("off", "auto", "cds", "orf", "six-frame"):
        _check_proteins(list(iter_proteins(path, Translation(how, min_orf=2))))


def check_gff(path: Path) -> None:
    """The same of the coding sequences of a GFF3 file beside a FASTA."""
    from bioxfer.genes import Translation
    from bioxfer.io import iter_proteins

    contigs = path.with_name("in.fasta")
    contigs.write_text(">c1\nATGAAAGTAAAATAAC\n>c2\nATGAAATAA\n>c3\nATG\n")
    found = list(iter_proteins(contigs, Translation(gff=path)))
    _check_proteins(found)
    assert {record.origin.source for record in found} == {"c1", "c2", "c3"}


def _check_proteins(found: list[SequenceRecord]) -> None:
    ids = [record.id for record in found]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    for record in found:
        origin = record.origin
        if origin is None:
            continue
        assert record.note
        if origin.start is None:
            assert not record.sequence or record.note.endswith("auto: read as a protein")
        else:
            assert 1 <= origin.start <= origin.end
            if "no nucleotides" not in record.note and "parts overlap" not in record.note:
                assert len(record.sequence) <= (origin.end - origin.start + 1) // 3


def check_label_file(path: Path) -> None:
    """The labels of a table are its cells."""
    from bioxfer.io import read_labels

    found = [(name, label.label) for name, label in read_labels(path).items()]
    data = decompressed(path.read_bytes())
    _check_rows(found, data, ("id", "label"), _delimiters(path))


def _delimiters(path: Path) -> str:
    return "\t,;" if path.suffix == ".tsv" else ",\t;"


def _check_rows(found: list[tuple[str, str]], data: bytes, names: tuple[str, str], delimiters: str) -> None:
    """Hold pairs against the cells of a table; a row twice, or with no label, counts once or not."""
    if not data.removeprefix(_BOM).strip():
        assert not found
        return
    for delimiter in delimiters:
        header, *rows = parse_table(data, delimiter)
        columns = [name.strip() for name in header]
        if set(names) <= set(columns):
            break
    pairs = [tuple(row[columns.index(name)] for name in names) for row in rows]
    if names[1] == "sequence":
        pairs = [(name, "".join(c for c in text if c not in _BLANKS)) for name, text in pairs]
    else:
        pairs = list(dict.fromkeys(pair for pair in pairs if pair[1]))
    assert found == pairs


def check_parts(path: Path) -> None:
    """The part of each record is its row's cell."""
    from bioxfer.audits import read_parts
    from bioxfer.io import read_sequences

    records = read_sequences(path)
    parts = read_parts(path, "split", records)
    assert parts == [record.split for record in records]


def check_residue_labels(path: Path) -> None:
    """Labels of residues give as many targets as there are residues."""
    from bioxfer.errors import SequenceError
    from bioxfer.io import read_sequences
    from bioxfer.residue_labels import choose_residue_task, encode_labels
    from bioxfer.sequences import clean_protein
    from bioxfer.tasks import task_from_name

    records = [record for record in read_sequences(path) if record.label]
    with contextlib.suppress(SequenceError):  # gaps, which it names by record
        name = choose_residue_task("auto", records)
        if name:
            _, codes = encode_labels(records, name)
            for record, code in zip(records, codes, strict=True):
                clean = clean_protein(record)
                assert clean.skipped or len(code) == len(clean.residues)
        elif records:
            labels = [record.label or "" for record in records]
            try:
                task = task_from_name("auto", labels)
                assert len(task.encode(labels)) == len(records)
            except BioxferError as error:  # it knows labels and no file
                check_sentence(f"{error} {path.name}", path)


# --- stored embeddings --------------------------------------------------------------------------------


@functools.cache
def _stored_files(suffix: str) -> tuple[bytes, ...]:
    """Small files of vectors and of residues, one record without any."""
    from test_vectors import rows

    from bioxfer.vectors import write_vectors

    found = []
    for per_residue in (False, True)[: 1 if suffix in ("csv", "h5ad") else 2]:
        facts = {"model": "toy", "layer": 2, "pool": "residues" if per_residue else "mean+max"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"v.{suffix}")
            given = rows(["a", "b", "sp|P1|C", "d e"], per_residue=per_residue)
            write_vectors(path, given, pool="mean+max", width=3, facts=facts, per_residue=per_residue)
            found.append(path.read_bytes())
    return tuple(found)


@functools.cache
def _extracted_files() -> tuple[bytes, ...]:
    """What fair-esm's extract.py writes of a protein."""
    matrix = torch.arange(12.0).reshape(4, 3)
    parts = {
        "mean_representations": {6: matrix.mean(0)},
        "bos_representations": {6: matrix[0].clone()},
        "representations": {6: matrix},
    }
    found = []
    for name, part in parts.items():
        buffer = io.BytesIO()
        torch.save({"label": "p1 a protein", name: part}, buffer)
        found.append(buffer.getvalue())
    return tuple(found)


def spoil_archive(data: bytes, dice: Random) -> bytes:
    return spoil_member(data, dice) if dice.randrange(4) else spoil_bytes(data, dice)


def check_stored(path: Path) -> None:
    """What was read is whole: a finite vector or a reason for each record."""
    from bioxfer.exchange import read_embeddings

    found = read_embeddings(path.parent if path.suffix == ".pt" else path)
    columns = (found.ids, found.lengths, found.statuses, found.messages, found.vectors)
    assert len({len(column) for column in columns}) == 1
    assert all(found.ids)
    empty = [status in ("skipped", "failed") for status in found.statuses]
    assert (
        np.isfinite(found.vectors).all(1).tolist() == [not each for each in empty] or not found.vectors.size
    )
    for length, status, matrix, none in zip(
        found.lengths, found.statuses, found.residues or [None] * len(found), empty, strict=True
    ):
        assert matrix is None or (not none and (len(matrix) == length or status == "truncated"))


TARGETS = {
    "fasta": Target("in.fasta", lambda: list(_FASTA), spoil_fasta, check_fasta),
    "table": Target("in.csv", lambda: list(_TABLES), spoil_fasta, check_table),
    "tsv": Target("in.tsv", lambda: list(_TABLES), spoil_fasta, check_table),
    "genbank": Target("in.gb", lambda: list(_GENBANK), spoil_fasta, check_nucleotides),
    "fastq": Target("in.fastq", lambda: list(_FASTQ), spoil_fasta, check_nucleotides),
    "gff": Target("in.gff", lambda: list(_GFF), spoil_fasta, check_gff),
    "labels": Target("labels.csv", lambda: list(_TABLES), spoil_fasta, check_label_file),
    "split": Target("split.csv", lambda: list(_TABLES[:3]), spoil_bytes, check_parts),
    "residue labels": Target("labels.csv", lambda: list(_TABLES[3:]), spoil_bytes, check_residue_labels),
    "head": Target("head.safetensors", lambda: list(_head_files()), spoil_head, check_head),
    "card": Target("head.safetensors", lambda: list(_card_heads()), spoil_card, check_card),
    "compact weights": Target("w.safetensors", lambda: list(_compact_files()), spoil_compact, check_weights),
    "adapter": Target("a.safetensors", lambda: list(_adapter_files()), spoil_adapter, check_adapter),
    "model card": Target(
        "a.safetensors",
        lambda: [*_adapter_files(), *_compact_files()],
        lambda data, dice: (spoil_adapter if b"bioxfer-lora" in data else spoil_compact)(data, dice),
        check_model_card,
    ),
    "esm": Target("esm.pt", lambda: list(_esm_files()), spoil_esm, check_esm),
    "transfer checkpoint": Target(
        "j.safetensors", lambda: list(_journal_files()), spoil_checkpoint, check_journal
    ),
    "adaptation checkpoint": Target(
        "state.safetensors", lambda: list(_adaptation_files()), spoil_checkpoint, check_adaptation
    ),
    "pretraining checkpoint": Target(
        "state.safetensors", lambda: list(_pretraining_files()), spoil_checkpoint, check_pretraining
    ),
    "npz": Target("v.npz", lambda: list(_stored_files("npz")), spoil_archive, check_stored),
    "vectors": Target("v.csv", lambda: list(_stored_files("csv")), spoil_fasta, check_stored),
    "parquet": Target("v.parquet", lambda: list(_stored_files("parquet")), spoil_bytes, check_stored),
    "extracted": Target("p1.pt", lambda: list(_extracted_files()), spoil_archive, check_stored),
    "cache": Target("c.sqlite", lambda: list(_cache_files()), spoil_cache, check_cache),
}
"""What is fuzzed, by name."""


def examples(target: Target, count: int, *, seed: int = 0) -> Iterator[bytes]:
    """Give every valid file, and then spoiled ones."""
    dice, seeds = Random(seed), target.seeds()
    yield from seeds[:count]
    for _ in range(count - len(seeds)):
        yield target.mutate(dice.choice(seeds), dice)


def mutate(target: Target, data: bytes, dice: Random) -> bytes:
    """Spoil bytes once more that may be spoilt too far for their layout to be known."""
    try:
        return target.mutate(data, dice)
    except Exception:
        return spoil_bytes(data, dice)
