"""The registry of backbones, and fetching and checking of weights."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bioxfer import backbones
from bioxfer.backbones import (
    download_backbone,
    list_backbones,
    load_backbone,
    resolve_precision,
    verify_backbone,
    weights,
)
from bioxfer.backbones.packing import attend, attend_varied, pack_tokens
from bioxfer.errors import OfflineError, OutputError, UnknownModelError, UsageError, WeightsError

NAME = "esm2_t6_8M_UR50D"


def _esm2_file() -> bytes:
    """A tiny ESM-2 in the layout of the published files."""
    import esm

    torch.manual_seed(0)
    model = esm.ESM2(num_layers=2, embed_dim=32, attention_heads=2)
    state = {
        f"encoder.sentence_encoder.{name}": weight
        for name, weight in model.state_dict().items()
        if not name.startswith(("lm_head.", "contact_head."))
    }
    options = Namespace(encoder_attention_heads=2, token_dropout=True)
    buffer = io.BytesIO()
    torch.save({"args": None, "cfg": {"model": options}, "model": state}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    return _esm2_file()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("BIOXFER_OFFLINE", raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


class Publisher:
    """A web server on this machine that misbehaves as told, one fault for each request."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.faults: list[str] = []
        self.requests: list[tuple[str, str | None]] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/models"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("Range")
        self.requests.append((handler.path, requested))
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        body = self.content
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault == "page":
            body = b"<!DOCTYPE html><title>Sign in</title>"
        start = 0
        if requested and fault != "no ranges":
            start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        part = body[start:]
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part[: len(part) // 3] if fault == "cut" else part)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def publisher(content) -> Iterator[Publisher]:
    server = Publisher(content)
    yield server
    server.close()


@pytest.fixture
def no_sockets(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Registry


def test_import_brings_no_torch():
    code = "import sys, bioxfer.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exported_names_exist():
    assert all(hasattr(backbones, name) for name in backbones.__all__)
    assert all(hasattr(weights, name) for name in weights.__all__)


def test_fair_esm_knows_every_name_of_the_registry():
    import esm

    names = [info.name for info in list_backbones() if info.family.startswith("ESM")]
    assert len(names) == 12
    assert all(hasattr(esm.pretrained, name) for name in names)


def test_list_tells_what_is_cached(hub, content):
    (hub / f"{NAME}.pt").write_bytes(content)
    infos = {info.name: info for info in list_backbones()}
    assert (infos[NAME].where, infos[NAME].size) == ("cached", len(content))
    other = infos["esm1b_t33_650M_UR50S"]
    assert (other.family, other.layers, other.dim, other.where, other.size) == (
        "ESM-1b",
        33,
        1280,
        "not here",
        None,
    )


def test_list_reads_the_shape_of_the_embedded_weights(tmp_path, monkeypatch):
    from bioxfer.backbones import compact

    path = tmp_path / "compact.safetensors"
    model = compact.CompactModel(compact.CompactConfig(width=64, layers=2))
    compact.save_compact(model, path, card={})
    monkeypatch.setattr(compact, "COMPACT_WEIGHTS", path)
    info = list_backbones()[0]
    assert (info.name, info.where, info.layers, info.dim) == ("compact", "embedded", 2, 64)
    assert info.parameters == sum(weight.numel() for weight in model.state_dict().values())
    assert info.size == path.stat().st_size
    assert download_backbone("compact", offline=True) == path


def test_compact_weights_load_from_a_file(tmp_path):
    from bioxfer.backbones import compact

    path = tmp_path / "mine.safetensors"
    compact.save_compact(compact.CompactModel(compact.CompactConfig(width=64, layers=2)), path, card={})
    backbone = load_backbone(path)
    assert (backbone.name, backbone.dim, backbone.n_layers) == ("mine", 64, 2)
    check = verify_backbone(path)
    assert check.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="was asked for"):
        verify_backbone(path, sha256="0" * 64)


@pytest.mark.parametrize("name", ["esm2_t6_8M", "ESM2_T6_8M_UR50D", "facebook/esm2_t6_8M_UR50D"])
def test_unknown_name_is_answered_with_the_nearest_and_all(name):
    for function in (load_backbone, download_backbone, verify_backbone):
        with pytest.raises(UnknownModelError, match=f"did you mean {NAME}.*compact.*esm1v"):
            function(name)


@pytest.mark.parametrize("path", ["none.pt", "none.safetensors"])
def test_missing_file_is_named(path):
    for function in (load_backbone, verify_backbone):
        with pytest.raises(WeightsError, match=rf"{path}: there is no such weights file"):
            function(path)


def test_checkpoint_loads_by_path_and_by_cached_name_alike(hub, tmp_path, content, no_sockets):
    (hub / f"{NAME}.pt").write_bytes(content)
    (tmp_path / "mine.pt").write_bytes(content)
    by_name, by_path = load_backbone(NAME, offline=True), load_backbone(tmp_path / "mine.pt")
    assert (by_name.name, by_path.name) == (NAME, "mine")
    assert by_name.fingerprint == by_path.fingerprint
    a, b = (m.represent(["MKTAY"], layers=[2])[0].residues for m in (by_name, by_path))
    assert torch.equal(a, b)


def test_threads_are_set_and_impossible_ones_refused(tmp_path, content):
    path = tmp_path / "toy.pt"
    path.write_bytes(content)
    before = torch.get_num_threads()
    try:
        load_backbone(path, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UsageError, match="0 threads"):
        load_backbone(path, threads=0)


# Precision and device


def test_precision_is_taken_as_given_and_unknown_ones_refused():
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    with pytest.raises(UsageError, match="precision 'fp8' does not exist; choose fp32, bf16, fp16 or auto"):
        resolve_precision("fp8")


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "amx", "expected"),
    [
        ("x86_64", True, True, False, "bf16"),
        ("x86_64", True, False, True, "bf16"),
        ("AMD64", True, False, False, "fp32"),  # oneDNN emulates
        ("x86_64", False, False, False, "fp32"),
        ("aarch64", True, False, False, "bf16"),
        ("arm64", False, False, False, "fp32"),
    ],
)
def test_auto_precision_follows_the_processor(monkeypatch, machine, onednn, avx512_bf16, amx, expected):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto") == expected


def test_auto_precision_loads_here(tmp_path, content):
    path = tmp_path / "toy.pt"
    path.write_bytes(content)
    assert load_backbone(path, precision="auto").precision == resolve_precision("auto")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_impossible_device_is_refused(device):
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used"):
        resolve_precision("fp32", device=device)


# Fetching


def test_download_appears_whole_with_its_record(hub, publisher, content):
    seen = []
    path = download_backbone(
        NAME, base_url=publisher.url, progress=lambda have, total: seen.append((have, total))
    )
    assert path == hub / f"{NAME}.pt"
    assert path.read_bytes() == content
    digest = hashlib.sha256(content).hexdigest()
    assert (hub / f"{NAME}.pt.sha256").read_text() == f"{digest}  {NAME}.pt\n"
    assert _files(hub) == [f"{NAME}.pt", f"{NAME}.pt.sha256"]
    assert publisher.requests == [(f"/models/{NAME}.pt", None)]
    assert seen[-1] == (len(content), len(content))
    assert load_backbone(NAME, offline=True).n_layers == 2


def test_sound_file_is_not_fetched_again(hub, publisher):
    first = download_backbone(NAME, base_url=publisher.url)
    assert download_backbone(NAME, base_url=publisher.url) == first
    assert len(publisher.requests) == 1


def test_download_goes_into_a_given_folder(tmp_path, hub, publisher, content):
    folder = tmp_path / "new" / "folder"
    assert download_backbone(NAME, into=folder, base_url=publisher.url + "/").read_bytes() == content
    assert _files(hub) == []


def test_broken_transfer_is_taken_up_where_it_broke(hub, publisher, content):
    publisher.faults = ["cut"]
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert [requested for _, requested in publisher.requests] == [None, f"bytes={len(content) // 3}-"]


def test_broken_transfer_starts_anew_where_the_server_knows_no_ranges(hub, publisher, content):
    publisher.faults = ["cut", "no ranges"]
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert len(publisher.requests) == 2


@pytest.mark.parametrize("fault", ["flip", "page", "503"])
def test_damaged_transfer_is_fetched_again_from_its_start(hub, publisher, content, fault):
    publisher.faults = [fault]
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert [requested for _, requested in publisher.requests] == [None, None]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["cut"] * 3, r"of \d+ bytes arrived"),
        (["flip"] * 3, "damaged archive"),
        (["page"] * 3, "no torch checkpoint .*<!DOCTYPE html"),
        (["503"] * 3, "the server answered 503"),
        (["404"], "the server answered 404"),
    ],
)
def test_lasting_damage_is_one_clear_error_and_leaves_nothing(hub, publisher, faults, message):
    publisher.faults = list(faults)
    with pytest.raises(WeightsError, match=message) as caught:
        download_backbone(NAME, base_url=publisher.url)
    assert publisher.url in str(caught.value)
    assert len(publisher.requests) == len(faults)
    assert _files(hub) == []


def test_stated_sha256_is_enforced(hub, publisher, content):
    right = hashlib.sha256(content).hexdigest()
    with pytest.raises(WeightsError, match=f"sha256 is {right} instead of {'0' * 64}"):
        download_backbone(NAME, base_url=publisher.url, sha256="0" * 64)
    assert _files(hub) == []
    assert download_backbone(NAME, base_url=publisher.url, sha256=right.upper()).is_file()
    with pytest.raises(UsageError, match="is no sha256"):
        download_backbone(NAME, base_url=publisher.url, sha256="abc")


def test_damaged_file_in_the_cache_is_fetched_again(hub, publisher, content, caplog):
    path = download_backbone(NAME, base_url=publisher.url)
    path.write_bytes(content[:-100])
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert "fetching it again" in caplog.text
    assert len(publisher.requests) == 2


def test_partial_file_without_a_record_is_fetched_again(hub, publisher, content):
    (hub / f"{NAME}.pt").write_bytes(content[: len(content) // 2])
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content


def test_file_that_changed_at_the_publisher_is_not_taken_for_the_recorded_one(hub, publisher, content):
    path = download_backbone(NAME, base_url=publisher.url)
    path.unlink()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", "another model")
    publisher.content = buffer.getvalue()
    with pytest.raises(WeightsError, match=f"instead of {hashlib.sha256(content).hexdigest()}"):
        download_backbone(NAME, base_url=publisher.url)
    assert not path.exists()


def test_no_server_is_one_clear_error(hub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match="no connection"):
        download_backbone(NAME, base_url=f"http://127.0.0.1:{port}")
    with pytest.raises(UsageError, match="no web address"):
        download_backbone(NAME, base_url="mirror")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_opens_no_socket_and_names_the_command(hub, monkeypatch, no_sockets, how):
    if how == "environment":
        monkeypatch.setenv("BIOXFER_OFFLINE", "1")
    for function in (load_backbone, download_backbone):
        with pytest.raises(OfflineError, match=f"run: bioxfer models download {NAME}"):
            function(NAME, offline=how == "argument")


def test_offline_and_damaged_says_damaged(hub, content, no_sockets):
    path = hub / f"{NAME}.pt"
    path.write_bytes(content)
    verify_backbone(NAME)
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="damaged or was exchanged"):
        load_backbone(NAME, offline=True)


def test_full_disk_is_one_clear_error_and_leaves_nothing(hub, publisher, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"No space left on device"):
        download_backbone(NAME, base_url=publisher.url)
    assert _files(hub) == []


def test_folder_that_cannot_be_made_is_refused_before_the_first_request(tmp_path, hub, publisher):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="set TORCH_HOME"):
        download_backbone(NAME, into=tmp_path / "file" / "folder", base_url=publisher.url)
    assert publisher.requests == []


# Checking


def test_first_use_is_recorded_and_later_uses_are_held_against_it(tmp_path, content, caplog):
    path = tmp_path / "toy.pt"
    path.write_bytes(content)
    caplog.set_level("INFO", logger="bioxfer")
    first = verify_backbone(path)
    assert (first.known, first.sha256) == (False, hashlib.sha256(content).hexdigest())
    assert "the publisher states no checksum" in caplog.text
    assert verify_backbone(path).known
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    for function in (verify_backbone, load_backbone):
        with pytest.raises(WeightsError, match=r"is recorded in toy\.pt\.sha256; the file is damaged"):
            function(path)


@pytest.mark.parametrize("record", ["", "hello\n", "12345  toy.pt\n"])
def test_unreadable_record_is_refused(tmp_path, content, record):
    (tmp_path / "toy.pt").write_bytes(content)
    (tmp_path / "toy.pt.sha256").write_text(record)
    with pytest.raises(WeightsError, match=r"toy\.pt\.sha256: holds no sha256; delete it"):
        load_backbone(tmp_path / "toy.pt")


def test_weights_in_a_folder_that_takes_no_record_still_load(tmp_path, content, monkeypatch):
    def fail(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "toy.pt"
    path.write_bytes(content)
    monkeypatch.setattr("tempfile.mkstemp", fail)
    assert load_backbone(path).n_layers == 2
    assert _files(tmp_path) == ["toy.pt"]


def test_verify_names_the_command_for_weights_that_are_not_here(hub):
    with pytest.raises(WeightsError, match=f"is not here; run: bioxfer models download {NAME}"):
        verify_backbone(NAME)


def test_hub_folder_is_that_of_torch(monkeypatch, tmp_path):
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert weights.hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"
        monkeypatch.setenv(variable, str(tmp_path))
        assert weights.hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_fp16_is_refused_where_there_is_no_gpu():
    with pytest.raises(UsageError, match=r"fp16 needs a GPU, and the device is 'cpu'; choose bf16 or fp32"):
        load_backbone("compact", precision="fp16")


def test_auto_says_what_it_costs(caplog):
    with caplog.at_level("INFO", logger="bioxfer"):
        precision = resolve_precision("auto")
    assert ("cosine of 0.9999" in caplog.text) is (precision == "bf16")


def test_one_call_attends_all_lengths_as_many_calls_do(monkeypatch):
    """The call itself needs a GPU; here is what it gets."""
    from torch.nn.attention import varlen

    torch.manual_seed(0)
    pack = pack_tokens([torch.zeros(n, dtype=torch.uint8) for n in (5, 3, 5, 9)], multiple=8)
    q, k, v = torch.randn(3, len(pack.tokens), 2, 16)

    def definition(q, k, v, bounds, also, most, longest):
        assert torch.equal(bounds, also)
        assert bounds.dtype == torch.int32
        assert most == longest == 9
        parts = []
        for a, b in pairwise(bounds.tolist()):
            logits = torch.einsum("qhk,thk->hqt", q[a:b], k[a:b]) * q.shape[-1] ** -0.5
            parts.append((logits.softmax(-1) @ v[a:b].transpose(0, 1)).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", definition)
    found = attend_varied(q, k, v, pack.groups)
    assert torch.allclose(found, attend(q, k, v, pack.groups, scale=0.25), atol=1e-6)
