"""What the tests share: toy models, the shared tables, and an empty home for caches."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import hypothesis
import pytest

# A busy machine is slow; that is no reason to fail.
hypothesis.settings.register_profile(
    "bioxfer", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bioxfer")

# A shell that runs the tests in its background, or nohup, has them ignore these, and so would every child.
for each, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, each, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared labelled tables; the test skips where it is absent."""
    folder = Path(os.environ.get("BIOXFER_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared tables are not here ({folder}); set BIOXFER_SHARED to their folder")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test an embedding cache of its own."""
    monkeypatch.setenv("BIOXFER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach servers on this machine past any proxy that is set; children inherit it."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")


@pytest.fixture(scope="session")
def demo() -> Path:
    """The FASTA of the demo."""
    return REPOSITORY / "data" / "demo.fasta"


@pytest.fixture(scope="session")
def toy_backbone():
    """An untrained compact backbone, 64 wide and two blocks deep."""
    from bioxfer.backbones.compact import random_backbone

    return random_backbone()


@pytest.fixture
def bench(tmp_path: Path):
    """A folder with a toy backbone and head, and the commands that use them."""
    from toys import Bench

    return Bench(tmp_path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The batches that a compact backbone is given."""
    from bioxfer.backbones.compact import CompactBackbone

    batches: list[list[str]] = []
    original = CompactBackbone.represent

    def represent(self, sequences, *, layers):
        batches.append(list(sequences))
        return original(self, sequences, layers=layers)

    monkeypatch.setattr(CompactBackbone, "represent", represent)
    return batches


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("BIOXFER_OFFLINE", "BIOXFER_MIRRORS"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_sockets(monkeypatch) -> None:
    """Make every socket of this process an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
