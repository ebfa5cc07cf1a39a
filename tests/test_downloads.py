"""Downloads from servers that cut, flip and lie, from mirrors in turn, and from where a run stopped."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from toys import esm2_file, run

from bioxfer.backbones import download_backbone, downloads, load_backbone, verify_backbone
from bioxfer.backbones.downloads import mirrors
from bioxfer.backbones.weights import PUBLISHER
from bioxfer.errors import OfflineError, OutputError, UsageError, WeightsError

NAME = "esm2_t6_8M_UR50D"
PART = f".{NAME}.pt.part"
WHOLE = [f"{NAME}.pt", f"{NAME}.pt.sha256"]


class Publisher:
    """A web server on this machine that misbehaves as told, one fault for each request."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = ""
        self.conditional = True  # heeds If-Range
        self.faults: list[str] = []
        self.requests: list[tuple[str, str | None]] = []
        self.conditions: list[str | None] = []
        self.freed = threading.Event()  # what hangs goes on
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # clients that leave early are what these tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/models"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        requested, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.requests.append((handler.path, requested))
        self.conditions.append(condition)
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        if fault.startswith("to "):
            handler.send_response(302)
            handler.send_header("Location", fault[3:])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "silence":
            self.freed.wait(20)
            return
        body = self.content
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault == "page":
            body = b"<!DOCTYPE html><title>Sign in</title>"
        if fault == "gzip":
            body = gzip.compress(body)
        start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested else 0
        if start and start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        heeded = condition in (None, self.etag) or not self.conditional
        ranged = requested and fault not in ("no ranges", "far too large") and heeded
        start = start if ranged else 0
        if fault in ("other range", "unasked range"):
            ranged, start = True, start // 2 or 7
        ranged = ranged or fault == "whole range"
        handler.send_response(206 if ranged else 200)
        if ranged:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if fault == "gzip":
            handler.send_header("Content-Encoding", "gzip")
        part = body[start:]
        announced = {
            "too small": len(part) // 2,
            "too large": len(part) + 1000,
            "far too large": 10**15,
        }
        if fault != "endless":
            handler.send_header("Content-Length", str(announced.get(fault, len(part))))
        handler.end_headers()
        if fault == "endless":
            while not self.freed.is_set():
                handler.wfile.write(bytes(1 << 16))
        elif fault == "drip":
            for byte in part:
                handler.wfile.write(bytes([byte]))
                if self.freed.wait(0.02):
                    break
        elif fault == "stop":  # and wait, with the connection open
            handler.wfile.write(part[: len(part) // 3])
            handler.wfile.flush()
            self.freed.wait(20)
        else:
            handler.wfile.write(part[: len(part) // 3] if fault in ("cut", "whole range") else part)

    def close(self) -> None:
        self.freed.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def content() -> bytes:
    return esm2_file()


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    """Do not wait between the rounds."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)


@pytest.fixture
def publisher(content) -> Iterator[Publisher]:
    server = Publisher(content)
    yield server
    server.close()


@pytest.fixture
def other(content) -> Iterator[Publisher]:
    """A second one."""
    server = Publisher(content)
    yield server
    server.close()


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert _files(hub) == ([PART, PART + ".json"] if "cut" in faults else [])  # what came is good so far


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
    with pytest.raises(WeightsError, match=r"the file cannot be read \(No such file.*check the name"):
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
    with pytest.raises(OutputError, match=r"\(No space left on device\); free some space$"):
        download_backbone(NAME, base_url=publisher.url)
    assert _files(hub) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_what_free_space_does_not_mend_is_told_otherwise(hub, publisher, monkeypatch, number):
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    told = rf"\({os.strerror(number)}\); name another folder \(--into, TORCH_HOME\)$"
    with pytest.raises(OutputError, match=told):
        download_backbone(NAME, base_url=publisher.url)


def test_a_folder_of_the_same_name_is_to_be_moved(hub, publisher):
    (hub / WHOLE[0] / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"a directory\); move that folder away$"):
        download_backbone(NAME, base_url=publisher.url)


def test_folder_that_cannot_be_made_is_refused_before_the_first_request(tmp_path, hub, publisher):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="set TORCH_HOME"):
        download_backbone(NAME, into=tmp_path / "file" / "folder", base_url=publisher.url)
    assert publisher.requests == []


# Servers that lie


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        (["too small"], [None, None]),
        (["too large"], [None, "end"]),  # nothing is missing, as the server then has to say itself
        (["cut", "other range"], [None, "third", None]),
        (["unasked range"], [None, None]),
        (["cut", "flip"], [None, "third", None]),
    ],
)
def test_lies_about_lengths_and_ranges_are_found_out(hub, publisher, content, faults, asked):
    publisher.faults = list(faults)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    places = {"end": f"bytes={len(content)}-", "third": f"bytes={len(content) // 3}-", None: None}
    assert [requested for _, requested in publisher.requests] == [places[place] for place in asked]
    assert _files(hub) == WHOLE


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gzip", "packed by gzip, which was not asked for"),
        ("far too large", "announced 1000000000000000 bytes, more than any model has"),
        ("endless", "more than 500000 bytes came, more than any model has"),
        ("to file:///etc/hostname", "302 Found - Redirection to url 'file:///etc/hostname' is not allowed"),
        ("to ftp://127.0.0.1/x.pt", "points to 'ftp://127.0.0.1/x.pt', where this will not follow"),
        ("to data:,x", "302 Found - Redirection to url 'data:,x' is not allowed"),
    ],
)
def test_what_another_attempt_would_not_mend_is_asked_for_once(hub, publisher, monkeypatch, fault, message):
    monkeypatch.setattr(downloads, "LARGEST", 500_000)
    publisher.faults = [fault]
    with pytest.raises(WeightsError, match=message):
        download_backbone(NAME, base_url=publisher.url)
    assert len(publisher.requests) == 1
    assert _files(hub) == []


def test_a_redirect_is_followed_to_http_and_from_https_never_back(hub, publisher, content):
    publisher.faults = [f"to {publisher.url}/elsewhere.pt"]
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert [path for path, _ in publisher.requests] == [f"/models/{NAME}.pt", "/models/elsewhere.pt"]
    asked = urllib.request.Request("https://example.org/x.pt")
    for place, follows in (("https://example.com/y", True), ("http://example.org/x.pt", False)):
        if follows:
            assert downloads._Redirects().redirect_request(asked, None, 302, "", {}, place) is not None
        else:
            with pytest.raises(downloads.RefusedError, match="will not follow"):
                downloads._Redirects().redirect_request(asked, None, 302, "", {}, place)


@pytest.mark.parametrize(("fault", "message"), [("silence", "timed out"), ("drip", "only .* bytes came in")])
def test_a_server_that_hangs_or_drips_is_left(
    hub, publisher, other, content, monkeypatch, caplog, fault, message
):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    publisher.faults = [fault]
    began = time.monotonic()
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == content
    assert re.search(f"{re.escape(publisher.url)}.*{message}.*trying the next place", caplog.text)
    assert time.monotonic() - began < 15  # a drip to the end would take an hour


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, publisher, content, monkeypatch):
    disk = type("Usage", (), {"free": len(content) - 1})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: disk)
    with pytest.raises(OutputError, match=rf"{len(content)} bytes are to come and {disk.free} are free"):
        download_backbone(NAME, base_url=publisher.url)
    assert _files(hub) == []


def test_a_disk_that_fills_midway_keeps_the_old_file_and_no_part(tmp_path, publisher, content):
    """With a limit on the size of files, as that of a full disk; in a process of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(content) // 2}, {len(content) // 2}))\n"
        "from bioxfer.cli import main\n"
        f"main(['models', 'download', '{NAME}', '--base-url', '{publisher.url}', '--into', sys.argv[1]])"
    )
    ended = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert re.search(r"cannot be written \(File too large\); name another folder .*$", ended.stderr)
    assert _files(folder) == []


def test_a_mirror_that_announces_more_than_the_disk_holds_is_left_for_the_next(
    hub, publisher, other, content, monkeypatch, caplog
):
    monkeypatch.setattr(downloads, "LARGEST", 10**16)
    other.faults, publisher.faults = ["cut"], ["far too large"]
    places = [other.url, publisher.url]
    assert download_backbone(NAME, base_url=places).read_bytes() == content
    assert re.search(r"\d+ bytes are to come and \d+ are free; trying the next place", caplog.text)
    assert other.requests[-1][1] == f"bytes={len(content) // 3}-"  # what had come was kept
    assert _files(hub) == WHOLE
    (hub / WHOLE[0]).unlink()
    publisher.faults, other.faults = ["far too large"], ["far too large"]
    with pytest.raises(OutputError, match=r"bytes are to come and \d+ are free; free some space or name"):
        download_backbone(NAME, base_url=places)
    publisher.faults, other.faults = ["far too large"], ["404"]
    with pytest.raises(WeightsError, match=r"from any of 2 places .*answered 404.*are free"):
        download_backbone(NAME, base_url=places)


# Mirrors


@pytest.mark.parametrize("fault", ["404", "403", "503", "page", "flip", "gzip", "too small"])
def test_a_mirror_that_fails_is_left_for_the_next_with_a_warning(
    hub, publisher, other, content, caplog, fault
):
    publisher.faults = [fault]
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == content
    assert (len(publisher.requests), other.requests) == (1, [(f"/models/{NAME}.pt", None)])
    warning = caplog.records[0]
    assert warning.levelname == "WARNING"
    assert re.match(f"{publisher.url}/{NAME}.pt: .*; trying the next place$", warning.getMessage())
    assert _files(hub) == WHOLE


def test_a_mirror_that_is_not_there_is_left_for_the_next(hub, publisher, content):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert download_backbone(NAME, base_url=[nobody, publisher.url]).read_bytes() == content


def test_one_mirror_goes_on_where_another_broke_off(hub, publisher, other, content):
    publisher.faults = ["cut"]
    publisher.etag, other.etag = '"one"', '"two"'
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == content
    assert other.requests == [(f"/models/{NAME}.pt", f"bytes={len(content) // 3}-")]
    assert other.conditions == [None]  # the first one's mark means nothing to the second


def test_parts_of_two_versions_are_not_put_together(hub, publisher, other, content, caplog):
    publisher.faults = ["cut"]
    publisher.content = content[:50] + b"\0" * 50 + content[100:]
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == content
    assert "damaged archive" in caplog.text
    assert [requested for _, requested in other.requests][:1] == [f"bytes={len(content) // 3}-"]


def test_parts_of_a_file_without_checksums_need_a_mark_or_a_hash(hub, publisher, other, caplog):
    """The layout before torch 1.6 has no checksums of its own."""
    publisher.content = other.content = old = b"\x80\x02" + random.Random(0).randbytes(100_000)
    publisher.faults = ["cut"]
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == old
    assert "came in several parts and has no checksums of its own" in caplog.text
    assert [requested for _, requested in publisher.requests] == [None, None]
    (hub / WHOLE[0]).unlink()  # its record stays, and is enough
    publisher.faults = ["cut"]
    assert download_backbone(NAME, base_url=[publisher.url, other.url]).read_bytes() == old
    assert len(publisher.requests) == 3


def test_all_mirrors_failing_is_one_error_that_names_each(hub, publisher, other):
    publisher.faults, other.faults = ["404"], ["503"] * 3
    with pytest.raises(WeightsError) as caught:
        download_backbone(NAME, base_url=[publisher.url, other.url])
    message = str(caught.value)
    assert re.match(rf"{NAME}.pt: could not be fetched from any of 2 places \(", message)
    assert f"{publisher.url}/{NAME}.pt: the server answered 404" in message
    assert f"{other.url}/{NAME}.pt: the server answered 503" in message
    assert (len(publisher.requests), len(other.requests)) == (1, 3)


def test_mirrors_come_from_the_options_or_the_environment(monkeypatch):
    monkeypatch.delenv("BIOXFER_MIRRORS", raising=False)
    assert mirrors() == [PUBLISHER]
    monkeypatch.setenv("BIOXFER_MIRRORS", " https://a.org/x ,, /net/models,https://a.org/x")
    assert mirrors() == ["https://a.org/x", "/net/models", PUBLISHER]
    assert mirrors(["http://b.org"]) == ["http://b.org"]


def test_the_command_takes_several_mirrors_and_the_environment(hub, publisher, other, content, monkeypatch):
    publisher.faults = ["404"]
    ended = run("models", "download", NAME, "--base-url", publisher.url, "--base-url", other.url)
    assert (ended.code, ended.out.decode()) == (0, f"{hub / WHOLE[0]}\n")
    assert "the server answered 404" in ended.err
    (hub / WHOLE[0]).unlink()
    monkeypatch.setenv("BIOXFER_MIRRORS", f"{publisher.url},{other.url}")
    assert load_backbone(NAME).n_layers == 2
    assert len(publisher.requests) == 2


@pytest.mark.parametrize(
    "place",
    ["file:///tmp", "ftp://a.org/x", "FILE:///etc", "https://", "javascript://x", "gopher://x"],
)
def test_other_kinds_of_address_are_refused_before_any_request(hub, publisher, place):
    with pytest.raises(UsageError, match=r"is no web address to fetch from; .* https:"):
        download_backbone(NAME, base_url=[publisher.url, place])
    assert publisher.requests == []


def test_a_password_in_an_address_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("BIOXFER_MIRRORS", "https://me:hunter2@a.org/x")
    with pytest.raises(UsageError, match=r"a mirror on a\.org is given with a user name") as caught:
        mirrors()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ["https://a.org/x?key=hunter2", "https://a.org/x#hunter2"])
def test_a_query_in_an_address_is_refused_and_not_repeated(hub, place):
    with pytest.raises(
        UsageError, match=r"on a\.org is given with a query or fragment \(\? or #\), .*use an address without"
    ) as caught:
        download_backbone(NAME, base_url=place)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "https://a.org:80000/x",
        "https://a.org:x/y",
        "https://a.org:0/",
        "https://a.org/my models",
        "https://a.org/x\n",
        " https://a.org/x",
        "https://[a.org/x?key=hunter2",
        "ftp://me:hunter2@a.org/x",
        "https://me:hunter2/x@a.org",
    ],
)
def test_an_address_that_cannot_work_is_refused_at_once(hub, no_sockets, place):
    with pytest.raises(UsageError, match=r"^[^\n]* (is no web address to fetch from|a user name)") as caught:
        download_backbone(NAME, base_url=place)
    assert "hunter2" not in str(caught.value)


def test_a_folder_is_a_mirror_too_and_works_offline(hub, tmp_path, content, monkeypatch, no_sockets):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / WHOLE[0]).write_bytes(content)
    monkeypatch.setenv("BIOXFER_MIRRORS", f"https://a.org/x,{folder}")
    assert load_backbone(NAME, offline=True).n_layers == 2
    assert _files(hub) == WHOLE
    (folder / WHOLE[0]).write_bytes(content[:-1])
    (hub / WHOLE[0]).unlink()
    with pytest.raises(WeightsError, match=rf"{NAME}\.pt: could not be fetched, its sha256 is"):
        load_backbone(NAME, offline=True)
    assert _files(hub) == WHOLE[1:]
    (folder / WHOLE[0]).unlink()
    with pytest.raises(WeightsError, match="the file cannot be read"):
        load_backbone(NAME, offline=True)


# Going on with what an earlier run left


def _start_download(publisher: Publisher, folder: Path) -> subprocess.Popen[bytes]:
    words = ["models", "download", NAME, "--base-url", publisher.url, "--into", folder]
    return subprocess.Popen([sys.executable, "-m", "bioxfer", *map(str, words)], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("etag", ["", '"v1"', 'W/"v1"'])
def test_a_killed_download_goes_on_in_the_next_run(hub, publisher, content, etag):
    publisher.etag, publisher.faults = etag, ["stop"]
    process = _start_download(publisher, hub)
    wait_for(lambda: (hub / PART).exists() and (hub / PART).stat().st_size == len(content) // 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _files(hub) == [PART, f"{PART}.json"]
    assert stat.S_IMODE((hub / PART).stat().st_mode) == 0o600
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert publisher.requests[1][1] == f"bytes={len(content) // 3}-"
    assert publisher.conditions[1] == (etag if etag == '"v1"' else None)
    assert _files(hub) == WHOLE
    assert stat.S_IMODE((hub / WHOLE[0]).stat().st_mode) == 0o644


def test_a_file_that_changed_between_two_runs_is_fetched_from_its_start(hub, publisher, content):
    publisher.etag, publisher.faults = '"old"', ["cut"] * 3
    publisher.content = b"PK\x03\x04" + bytes(len(content))
    with pytest.raises(WeightsError, match="bytes arrived"):
        download_backbone(NAME, base_url=publisher.url)
    publisher.etag, publisher.content = '"new"', content
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert publisher.conditions[-1] == '"old"'
    assert len(publisher.requests) == 4  # the condition failed, and so all of it came at once


OLD, NEW = (b"\x80\x02" + random.Random(seed).randbytes(100_000) for seed in (1, 2))  # without checksums


@pytest.mark.parametrize("changed", [True, False])
def test_a_server_that_ignores_the_condition_does_not_have_two_versions_joined(hub, publisher, changed):
    publisher.conditional = False
    publisher.etag, publisher.content, publisher.faults = '"old"', OLD, ["cut"] * 3
    with pytest.raises(WeightsError, match="bytes arrived"):
        download_backbone(NAME, base_url=publisher.url)
    if changed:
        publisher.etag, publisher.content = '"new"', NEW
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == publisher.content
    assert publisher.conditions[3] == '"old"'
    assert len(publisher.requests) == 4 + changed  # the rest came, and was thrown away with the first part


def test_a_whole_part_of_unknown_versions_is_not_believed(hub, publisher):
    publisher.content = NEW
    (hub / PART).write_bytes(OLD[:50_000] + NEW[50_000:])
    (hub / PART).chmod(0o600)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == NEW
    assert [requested for _, requested in publisher.requests] == [f"bytes={len(NEW)}-", None]


def test_notes_of_a_part_that_is_gone_do_no_harm(hub, publisher):
    """The server answers with a range although all was asked for; its mark is not the noted one."""
    place = f"{publisher.url}/{NAME}.pt"
    (hub / f"{PART}.json").write_text(json.dumps({"place": place, "etag": '"old"'}))
    publisher.etag, publisher.content, publisher.faults = '"new"', NEW, ["whole range", "cut", "cut"]
    with pytest.raises(WeightsError, match="bytes arrived"):
        download_backbone(NAME, base_url=publisher.url)
    assert publisher.conditions == [None, '"new"', '"new"']


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_stands_in_the_place_of_the_notes_is_left_alone(hub, tmp_path, publisher, content, what):
    notes, victim = hub / f"{PART}.json", tmp_path / "victim"
    victim.write_text("precious")
    if what == "link":
        notes.symlink_to(victim)
    elif what == "folder":
        notes.mkdir()
    else:
        os.mkfifo(notes)
    publisher.etag, publisher.faults = '"v1"', ["cut"] * 3
    with pytest.raises(WeightsError, match="bytes arrived"):
        download_backbone(NAME, base_url=publisher.url)
    assert (hub / PART).exists()
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert publisher.requests[3][1].startswith("bytes=")
    assert (victim.read_text(), _files(hub)) == ("precious", [notes.name, *WHOLE])


def test_a_part_that_is_whole_already_is_only_checked(hub, publisher, content):
    (hub / PART).write_bytes(content)
    (hub / PART).chmod(0o600)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert [requested for _, requested in publisher.requests] == [f"bytes={len(content)}-"]


@pytest.mark.parametrize("left", [b"\0" * 1000, b"\0" * 10**6])
def test_a_part_that_is_rubbish_does_no_harm(hub, publisher, content, left):
    (hub / PART).write_bytes(left)
    (hub / f"{PART}.json").write_bytes(b"[[[" * 100_000)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert _files(hub) == WHOLE


def test_a_link_in_place_of_the_part_is_not_followed(hub, tmp_path, publisher, content):
    victim, second = tmp_path / "victim", tmp_path / "second"
    for name, file in ((PART, victim), (f"{PART}.json", second)):
        file.write_text("precious")
        (hub / name).symlink_to(file)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert (victim.read_text(), second.read_text()) == ("precious", "precious")
    assert (hub / PART).is_symlink()  # and is nobody's business but its owner's
    (hub / WHOLE[0]).unlink()
    (hub / PART).unlink()
    os.link(victim, hub / PART)  # a second name of someone's file
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert victim.read_text() == "precious"


def test_two_downloads_at_once_do_not_harm_each_other(hub, publisher, content):
    publisher.faults = ["stop", ""]
    process = _start_download(publisher, hub)
    wait_for(lambda: (hub / PART).exists() and (hub / PART).stat().st_size == len(content) // 3)
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert publisher.requests[1][1] is None  # with a file of its own
    publisher.freed.set()  # the first one finds its connection closed, and goes on
    assert process.wait(60) == 0
    assert (hub / WHOLE[0]).read_bytes() == content
    assert _files(hub) == WHOLE


def test_a_file_that_another_download_has_just_published_is_not_written_to(hub, monkeypatch):
    """Between opening the part and locking it, the other may have finished and renamed it."""
    fcntl = pytest.importorskip("fcntl")
    real, calls = fcntl.flock, iter(range(9))

    def finish_first(file, how):
        if next(calls) == 0:
            (hub / PART).rename(hub / WHOLE[0])
            (hub / PART).touch()  # of a third one, which has only begun
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    (hub / PART).write_bytes(b"whole")
    with downloads._open_locked(hub / PART) as file:
        assert os.path.sameopenfile(file.fileno(), os.open(hub / PART, os.O_RDONLY))
        file.write(b"mine")
    assert (hub / WHOLE[0]).read_bytes() == b"whole"


def test_many_downloads_at_once_all_end_right(hub, publisher, content):
    publisher.faults = ["cut", "flip"]  # fewer than attempts: one download may meet them all
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: download_backbone(NAME, base_url=publisher.url), range(16)))
    assert all(path.read_bytes() == content for path in found)
    assert _files(hub) == WHOLE
    assert verify_backbone(NAME).known


def test_a_plain_interruption_keeps_what_came(hub, publisher, content):
    def stop(have: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_backbone(NAME, base_url=publisher.url, progress=stop)
    assert 0 < (hub / PART).stat().st_size <= len(content)
    assert not (hub / WHOLE[0]).exists()
    assert download_backbone(NAME, base_url=publisher.url).read_bytes() == content
    assert publisher.requests[1][1].startswith("bytes=")
