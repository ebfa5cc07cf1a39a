"""What the tests share: toy models, the shared tables, and an empty home for caches."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# A busy machine is slow; that is no reason to fail.
hypothesis.settings.register_profile(
    "bioxfer", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bioxfer")

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


@pytest.fixture(scope="session")
def demo() -> Path:
    """The FASTA of the demo."""
    return REPOSITORY / "data" / "demo.fasta"


@pytest.fixture(scope="session")
def toy_backbone():
    """An untrained compact backbone, 64 wide and two blocks deep."""
    from bioxfer.backbones.compact import random_backbone

    return random_backbone()
