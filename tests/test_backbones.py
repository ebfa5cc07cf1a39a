"""The registry of backbones, and fetching and checking of weights."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from toys import esm2_file

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
from bioxfer.errors import UnknownModelError, UsageError, WeightsError

NAME = "esm2_t6_8M_UR50D"


@pytest.fixture(scope="module")
def content() -> bytes:
    return esm2_file()


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


@pytest.mark.parametrize("name", ["esm2_t6_8M", "ESM2_T6_8M_UR50D"])
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
