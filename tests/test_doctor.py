"""`bioxfer doctor`: every kind of finding provoked, nothing written, no secret told."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import esm2_file, run

from bioxfer import cache as cache_module
from bioxfer import machine
from bioxfer.backbones import kernels, shipped, verify_backbone
from bioxfer.cache import EmbeddingCache, default_cache_path, inspect_cache
from bioxfer.doctor import examine, installation, settings, soundness
from bioxfer.doctor.findings import hide_home
from bioxfer.errors import WeightsError

NAME = "esm2_t6_8M_UR50D"


@pytest.fixture(autouse=True)
def clean(hub, monkeypatch) -> Path:
    """No variable of the user's, and an empty folder of downloaded weights."""
    for name in (*settings.VARIABLES, "BIOXFER_SHARED"):
        if name not in ("BIOXFER_CACHE", "TORCH_HOME", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
    return hub


def found(check, **options):
    """The findings of one check, by name."""
    return {finding.check: finding for finding in check(**options)}


def fill(path: Path, count: int = 20) -> None:
    with EmbeddingCache(path) as cache:
        cache.put_many({bytes([n]) * 32: np.full(64, n, dtype=np.float32) for n in range(count)})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


# The page


def test_a_healthy_installation_has_no_problem(no_sockets):
    ended = run("doctor")
    lines = ended.out.decode().splitlines()
    assert (ended.code, ended.err) == (0, "")
    for line in lines[:-1]:
        assert re.match(r"(ok {7}|note {5})\S.{5,} {2}\S", line), line
        assert (" -> " in line) or line.startswith("ok") or " processor " in line, line
    assert re.fullmatch(r"0 problems, \d+ notes?, \d+ ok", lines[-1])
    for name in (
        "bioxfer",
        "python",
        "torch",
        "kernels",
        "precision",
        "backbone compact",
        "self-test",
        "cache",
    ):
        assert any(re.match(rf"\w+ +{name} ", line) for line in lines), name
    assert sum(" head " in line for line in lines) == 10


def test_the_same_for_machines_keeps_its_form():
    ended = run("doctor", "--json", "--quick")
    page = json.loads(ended.out)
    assert list(page) == ["format", "version", "problems", "findings"]
    assert (page["format"], page["problems"]) == ("bioxfer-doctor/1", 0)
    for finding in page["findings"]:
        assert list(finding) == ["check", "verdict", "fact", "remedy", "values"]
        assert finding["verdict"] in ("ok", "note", "problem")
        assert all(isinstance(x, str | int | float | None) for x in finding["values"].values())
    again = json.loads(run("doctor", "--json", "--quick").out)
    assert [f["check"] for f in again["findings"]] == [f["check"] for f in page["findings"]]
    values = {finding["check"]: finding["values"] for finding in page["findings"]}
    assert values["torch"]["version"] == torch.__version__
    assert values["self-test"]["difference"] <= values["self-test"]["allowed"] == 1e-5
    assert values["backbone compact"]["sha256"] == values["backbone compact"]["recorded"]


def test_a_problem_is_exit_code_3(monkeypatch):
    monkeypatch.setenv("BIOXFER_KERNELS", "mmx")
    ended = run("doctor", "--quick")
    assert ended.code == 3
    assert re.search(r"^problem  kernels .*'mmx'.* -> set it to off, plain", ended.out.decode(), re.MULTILINE)


def test_it_writes_nothing_and_opens_no_socket(tmp_path):
    """In a process of its own, where every file that is opened to be written and every socket is seen."""
    code = (
        "import os, sys\n"
        "def watch(event, args):\n"
        "    made = event == 'open' and isinstance(args[0], str) and isinstance(args[2], int) and "
        "args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and args[0] != os.devnull\n"
        "    if made or event in ('os.mkdir', 'os.rename', 'os.remove') or event.startswith('socket.'):\n"
        "        os.write(2, f'{event} {args}\\n'.encode())\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(watch)\n"
        "from bioxfer.cli import main\n"
        "main(['doctor'])"
    )
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    before = snapshot(tmp_path)
    unset = dict.fromkeys(("BIOXFER_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"), "")
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **unset, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd=home / "folder",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "~/.cache/bioxfer/embeddings.sqlite" in ended.stdout
    assert str(home) not in ended.stdout
    assert snapshot(tmp_path) == before


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no such library")

    monkeypatch.setattr(torch, "get_num_threads", fail)
    page = {finding.check: finding for finding in examine(quick=True)}
    assert page["torch"].verdict == "problem"
    assert page["torch"].fact == "could not be examined: RuntimeError: no such library"
    assert page["precision"].verdict == "ok"
    assert page["network"].verdict == "ok"


def test_secrets_and_the_home_folder_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("BIOXFER_TOKEN", "hunter2")
    monkeypatch.setenv("BIOXFER_MIRRORS", "https://a.org/x?key=hunter2,https://me:hunter2@b.org/y")
    for form in ("", "--json"):
        ended = run("doctor", "--quick", *filter(None, [form]))
        assert ended.code == 3  # for the password in the address
        told = ended.out.decode()
        assert "hunter2" not in told
        assert str(tmp_path) not in told
    page = found(settings.see_environment)
    assert page["variable BIOXFER_MIRRORS"].fact == "https://a.org/x?..., https://...@b.org/y"
    assert page["variable TORCH_HOME"].fact == "~/torch"
    unknown = page["variable BIOXFER_TOKEN"]
    assert (unknown.verdict, unknown.fact) == ("note", "means nothing to bioxfer")
    assert hide_home(f"{tmp_path} {tmp_path}/x {tmp_path}x") == f"~ ~/x {tmp_path}x"


def test_a_line_stays_one_line(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1\n\x1b[31mproblem  all")
    line = next(x for x in run("doctor", "--quick").out.decode().splitlines() if "OMP_NUM_THREADS" in x)
    assert line.endswith("1??[31mproblem  all")


# What is installed


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """Versions of packages that differ from those that are here; None for absent ones."""
    versions: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        told = versions.get(name) if name in versions else real(name)
        if told is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return told

    needs = ["torch>=2.10", "fair-esm==2.0.0", "numpy<3,>=1.26", "typer", 'h5py>=3.10; extra == "hdf5"']
    needs += [
        'zstandard>=0.22; extra == "zstd"',
        'pytest>=8; extra == "test"',
        'bioxfer[zstd]; extra == "test"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_packages_are_held_against_what_is_needed(installed):
    installed |= {"torch": "2.9.1+cpu", "fair-esm": None, "numpy": "2.0", "typer": "0.1", "h5py": None}
    installed["zstandard"] = "0.22.0"
    page = found(installation.see_packages)
    assert sorted(page) == [
        f"package {n}" for n in ("fair-esm", "h5py", "numpy", "torch", "typer", "zstandard")
    ]
    assert {name for name, finding in page.items() if finding.verdict == "ok"} == {
        "package numpy", "package typer", "package zstandard"
    }  # fmt: skip
    told = page["package torch"]
    assert (told.verdict, told.fact) == ("problem", "2.9.1+cpu, but torch>=2.10 is needed")
    assert told.remedy == "pip install 'torch>=2.10'"
    assert (page["package fair-esm"].verdict, page["package fair-esm"].remedy) == (
        "problem",
        "pip install 'fair-esm==2.0.0'",
    )
    extra = page["package h5py"]
    assert (extra.verdict, extra.remedy) == ("note", "pip install 'bioxfer[hdf5]'")
    assert "only for writing .h5" in extra.fact


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.10.0", ">=2.10", True), ("2.9", ">=2.10", False), ("2.0.0", "==2.0.0", True),
        ("2.0", "==2.0.0", True),
        ("2.0.1", "==2.0.0", False), ("3.0", ">=2,<3", False), ("2.13.0rc1+cpu", ">=2.13", True),
        ("1", "", True),
        ("1.5", "!=1.5", False), ("5", "~=4.0", True),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version, wanted, fits):
    assert installation._fits(version, wanted) is fits


def test_a_package_whose_files_are_gone_is_a_problem(installed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "typer" else object())
    told = found(installation.see_packages)["package typer"]
    assert (told.verdict, told.remedy) == ("problem", "pip install --force-reinstall 'typer'")


def test_a_foreign_esm_is_told(monkeypatch):
    assert found(installation.see_esm) == {}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"esm": ["esm", "fair-esm"]})
    told = found(installation.see_esm)["package esm"]
    assert told.verdict == "note"
    assert "esm and fair-esm" in told.fact
    assert told.remedy.startswith("pip uninstall esm; pip install --force-reinstall fair-esm")


def test_running_from_a_folder_is_told(monkeypatch):
    def fail(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", fail)
    assert found(installation.see_packages)["packages"].verdict == "note"


def test_kernels_say_why_they_are_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("BIOXFER_KERNELS", "off")
    told = found(installation.see_kernels)["kernels"]
    assert (told.verdict, told.remedy) == ("note", "unset BIOXFER_KERNELS")
    monkeypatch.delenv("BIOXFER_KERNELS")
    kernels._load.cache_clear()
    try:
        monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
        told = found(installation.see_kernels)["kernels"]
        assert told.fact.startswith("not built; everything is computed with torch alone")
        assert "install a C++ compiler" in told.remedy
        kernels._load.cache_clear()
        (tmp_path / "_kernels.so").write_bytes(b"no library")
        told = found(installation.see_kernels)["kernels"]
        assert "_kernels.so cannot be loaded: " in told.fact
        assert told.remedy == "install bioxfer again"
    finally:
        kernels._load.cache_clear()


def test_more_threads_than_can_run_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    told = found(installation.see_torch)["torch"]
    assert told.verdict == "note"
    assert re.match(r"--threads \d+, or OMP_NUM_THREADS=", told.remedy)


def test_precision_says_what_auto_takes(monkeypatch):
    for native, auto in (
        (True, "bf16 native, fp16 not on a processor; auto takes bf16"),
        (False, "auto takes fp32"),
    ):
        monkeypatch.setattr("bioxfer.backbones.has_native_bf16", lambda _, native=native: native)
        assert auto in found(installation.see_precision)["precision"].fact


def test_mmseqs_absent_or_broken_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = found(installation.see_mmseqs)["mmseqs"]
    assert told.verdict == "note"
    assert "bioxfer's own k-mer search" in told.fact
    program = tmp_path / "mmseqs"
    for script, verdict, fact in (
        ("exit 9", "problem", "ended with status 9"),
        ("echo 15-abc", "ok", "MMseqs2 15-abc"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        told = found(installation.see_mmseqs)["mmseqs"]
        assert told.verdict == verdict
        assert told.fact.startswith(fact)


# The machine


def test_limits_of_a_container_are_seen(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "cpuinfo").write_text("model name\t: Toy 9000\nflags\t\t: fpu avx2 amx_tile avx512f\n")
    (proc / "meminfo").write_text("MemTotal:  4096 kB\nMemAvailable:  1024 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (groups / "a" / "cpu.max").write_text("150000 100000\n")
    (groups / "a" / "memory.max").write_text("2097152\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    seen = machine.look_at_processor(proc=proc, groups=groups)
    assert (seen.name, seen.quota, seen.instructions) == ("Toy 9000", 1.5, ("avx2", "avx512f", "amx_tile"))
    assert seen.usable <= 2
    memory = machine.look_at_memory(proc=proc, groups=groups)
    assert (memory.total, memory.available, memory.limit) == (4096 << 10, 1 << 20, 2 << 20)
    (proc / "self" / "cgroup").write_text("3:cpu,cpuacct:/\n4:memory:/x\n")  # version 1
    (groups / "cpu").mkdir()
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (groups / "memory" / "x").mkdir(parents=True)
    (groups / "memory" / "x" / "memory.limit_in_bytes").write_text("1000\n")
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.look_at_processor(proc=proc, groups=groups).quota == 0.5
    assert machine.look_at_memory(proc=proc, groups=groups).limit == 1000
    nothing = machine.look_at_memory(proc=tmp_path / "none", groups=groups)
    assert (nothing.total, nothing.limit) == (None, None)


def test_little_memory_and_few_cores_are_notes(monkeypatch):
    few = machine.Processor(name="Toy", cores=64, allowed=4, quota=2.0, instructions=())
    monkeypatch.setattr(machine, "look_at_processor", lambda: few)
    told = found(installation.see_processor)["processor"]
    assert told.verdict == "note"
    assert "this process may use 4; its control group gives it the time of 2" in told.fact
    monkeypatch.setattr(machine, "look_at_memory", lambda: machine.Memory(8 << 30, 6 << 30, 1 << 29))
    told = found(installation.see_memory)["memory"]
    assert (told.verdict, "512.0 MiB allowed by the control group" in told.fact) == ("note", True)


@pytest.mark.parametrize(("free", "verdict"), [(10 << 30, "ok"), (500 << 20, "note"), (1 << 20, "problem")])
def test_a_full_disk_is_told(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(machine, "look_at_disk", lambda _: machine.Disk(tmp_path, free, True))
    page = found(soundness.see_disks)
    assert [finding.verdict for finding in page.values()] == [verdict] * 3
    assert ("set TORCH_HOME" in page["disk weights"].remedy) is (verdict != "ok")


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_a_file_in_the_way_of_a_folder_is_a_problem(monkeypatch, tmp_path, kind):
    wall = tmp_path / "wall"
    if kind == "file":
        wall.touch()
    else:
        wall.symlink_to(tmp_path / "gone")
    for variable in ("BIOXFER_CACHE", "TORCH_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(wall / "deeper"))
    page = found(soundness.see_disks) | found(soundness.see_cache, quick=True)
    assert len(page) == 4
    for name, told in page.items():
        assert (told.verdict, told.values["writable"]) == ("problem", False)
        assert f"{wall} is no folder" in told.fact
        variable = {"disk weights": "TORCH_HOME", "disk temporary files": "TMPDIR"}.get(name, "BIOXFER_CACHE")
        assert f"set {variable} to " in told.remedy
    assert run("doctor", "--quick").code == 3


def test_an_absent_folder_of_temporary_files_is_a_problem_and_no_other(monkeypatch, tmp_path):
    for variable in ("BIOXFER_CACHE", "TORCH_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    page = found(soundness.see_disks)
    assert [told.verdict for told in page.values()] == ["ok", "ok", "problem"]
    told = page["disk temporary files"]
    assert told.fact.endswith(f"{tmp_path / 'none'}, which is not there")
    assert told.remedy == "make it, or set TMPDIR to another folder"


# Weights and heads


def test_what_is_shipped_is_what_is_recorded():
    """After a change of them, benchmarks/train_ready_heads.py --cards-only writes the record anew."""
    recorded = shipped.read_shipped()
    there = {p.relative_to(shipped.SHIPPED).as_posix(): p for p in shipped.SHIPPED.rglob("*.safetensors")}
    assert sorted(recorded.files) == sorted(there)
    for name, path in there.items():
        assert shipped.sha256_of(path) == recorded.files[name]
    assert len(recorded.probes) == 3


def test_the_record_is_written_as_it_is_read(tmp_path):
    (tmp_path / "heads").mkdir()
    shutil.copy(shipped.SHIPPED / "compact.safetensors", tmp_path)
    shutil.copy(shipped.SHIPPED / "heads" / "membrane.safetensors", tmp_path / "heads")
    shipped.record_shipped(tmp_path)
    mine, whole = shipped.read_shipped(tmp_path), shipped.read_shipped()
    assert mine.files.items() < whole.files.items()
    for protein, numbers in whole.probes.items():
        np.testing.assert_allclose(mine.probes[protein], numbers, atol=1e-5 * max(map(abs, numbers)))
    for text in ("", "{}", "[]", '{"files": {"a": "b"}, "probes": {}}', '{"files": {}, "probes": {}}'):
        (tmp_path / "shipped.json").write_text(text)
        with pytest.raises(WeightsError, match=r"shipped\.json: the record .*install bioxfer again"):
            shipped.read_shipped(tmp_path)


@pytest.fixture
def damaged(monkeypatch, tmp_path) -> Path:
    """Weights of the package with one bit flipped."""
    data = bytearray((shipped.SHIPPED / "compact.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "compact.safetensors"
    path.write_bytes(data)
    monkeypatch.setattr("bioxfer.backbones.compact.COMPACT_WEIGHTS", path)
    return path


def test_damaged_weights_are_a_problem(damaged, monkeypatch):
    told = found(soundness.see_embedded)["backbone compact"]
    assert told.verdict == "problem"
    assert "damaged or was exchanged" in told.fact
    assert told.remedy == "install bioxfer again"
    monkeypatch.setattr("bioxfer.backbones.shipped.SHIPPED", damaged.parent)
    with pytest.raises(WeightsError, match=r"the package came with another; install bioxfer again"):
        verify_backbone("compact")
    damaged.unlink()
    assert found(soundness.see_embedded)["backbone compact"].fact.endswith("is missing")


def test_sound_embedded_weights_are_known():
    assert verify_backbone("compact").known


def test_heads_that_do_not_fit_are_problems(monkeypatch, tmp_path):
    heads = tmp_path / "heads"
    shutil.copytree(shipped.SHIPPED / "heads", heads)
    monkeypatch.setattr("bioxfer.prediction.READY_HEADS", heads)
    page = found(soundness.see_heads)
    assert len(page) == 10
    assert {finding.verdict for finding in page.values()} == {"ok"}
    (heads / "membrane.safetensors").unlink()
    (heads / "solubility.safetensors").write_bytes(b"no head")
    shutil.copy(heads / "conservation.safetensors", heads / "mine.safetensors")
    page = found(soundness.see_heads)
    verdicts = {
        name: page[f"head {name}"].verdict for name in ("membrane", "solubility", "mine", "localization")
    }
    assert verdicts == {"membrane": "problem", "solubility": "problem", "mine": "note", "localization": "ok"}


def test_a_head_of_another_backbone_is_a_problem(monkeypatch):
    from bioxfer.backbones import compact

    real = compact.load_compact

    def other(*words, **options):
        backbone = real(*words, **options)
        backbone.fingerprint = "0" * 16
        return backbone

    monkeypatch.setattr(compact, "load_compact", other)
    told = found(soundness.see_heads)["head membrane"]
    assert told.verdict == "problem"
    assert told.fact.endswith("the embedded one is 0000000000000000")


def test_wrong_numbers_are_a_problem(monkeypatch):
    kept = shipped.read_shipped()
    first, *_ = kept.probes
    for change, verdict in ((1e-7, "ok"), (1e-3, "problem"), (float("nan"), "problem")):
        numbers = {**kept.probes, first: tuple(x + change for x in kept.probes[first])}
        monkeypatch.setattr(shipped, "first_numbers", lambda _, numbers=numbers: numbers)
        assert found(soundness.see_self_test)["self-test"].verdict == verdict


def test_downloaded_weights_are_held_against_their_record(hub):
    path, record, part = hub / f"{NAME}.pt", hub / f"{NAME}.pt.sha256", hub / f".{NAME}.pt.part"
    check = f"backbone {NAME}"

    def look(quick: bool = False):
        return found(soundness.see_downloaded, quick=quick)

    assert look()["backbones"].fact.startswith("no others in")
    path.write_bytes(esm2_file())
    assert (look()[check].verdict, record.exists()) == ("ok", False)
    assert "not recorded before" in look()[check].fact
    verify_backbone(NAME)
    assert "as recorded" in look()[check].fact
    path.write_bytes(esm2_file()[:-1])
    assert (look()[check].verdict, look(quick=True)[check].verdict) == ("problem", "ok")
    assert look()[check].remedy.startswith(f"delete it, then bioxfer models download {NAME}")
    record.write_text("stale\n")
    assert "holds no sha256" in look()[check].fact
    record.unlink()
    assert "damaged archive" in look()[check].fact
    path.rename(part)
    assert look()[check].fact.startswith("an unfinished download")
    part.unlink()
    record.write_text("0" * 64)
    assert look()[check].verdict == "note"
    assert "without its weights" in look()[check].fact


@pytest.fixture
def closed(monkeypatch, tmp_path) -> Path:
    """A folder that may not be entered; as root may enter any, the system's answers are given here."""
    folder = tmp_path.resolve() / "closed"
    folder.mkdir()
    stat, access = os.stat, os.access

    def within(path) -> bool:
        real = Path(os.path.realpath(path)) if isinstance(path, str | os.PathLike) else Path()
        return folder in real.parents

    def refuse(path, *words, **options):
        if options.get("follow_symlinks", True) and within(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *words, **options)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(
        os, "access", lambda path, mode: not within(path) and Path(path) != folder and access(path, mode)
    )
    return folder


def test_folders_that_may_not_be_entered_are_told_with_a_remedy(monkeypatch, closed):
    for variable in ("BIOXFER_CACHE", "TORCH_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(closed / "mine"))
    page = {finding.check: finding for finding in examine(quick=True)}
    assert not [finding for finding in page.values() if "could not be examined" in finding.fact]
    for name, verdict, variable in (
        ("backbones", "problem", "TORCH_HOME"),
        ("cache", "problem", "BIOXFER_CACHE"),
        ("disk cache", "note", "BIOXFER_CACHE"),
        ("disk weights", "note", "TORCH_HOME"),
        ("disk temporary files", "problem", "TMPDIR"),
    ):
        told = page[name]
        assert (told.verdict, "is not accessible to you" in told.fact) == (verdict, True), told
        assert f"set {variable} to " in told.remedy


def test_weights_behind_a_closed_door_do_not_hide_the_others(hub, closed):
    (hub / f"{NAME}.pt").symlink_to(closed / "x.pt")
    other = hub / "esm2_t12_35M_UR50D.pt"
    other.write_bytes(esm2_file())
    page = found(soundness.see_downloaded, quick=True)
    assert {name: told.verdict for name, told in page.items()} == {
        f"backbone {NAME}": "problem",
        f"backbone {other.stem}": "ok",
    }
    assert page[f"backbone {NAME}"].fact.endswith("is not accessible to you")


def test_unreadable_weights_of_the_package_are_a_problem(monkeypatch, damaged):
    def fail(path):
        raise WeightsError(f"{path}: weights cannot be read (Permission denied); check the path")

    monkeypatch.setattr("bioxfer.backbones.weights.sha256_of", fail)
    assert found(soundness.see_embedded)["backbone compact"].remedy == "install bioxfer again"
    page = found(soundness.see_heads)
    assert [told.verdict for told in page.values()] == ["problem"] * 10


# The cache


def look_at_cache(*, quick: bool = False):
    return found(soundness.see_cache, quick=quick)["cache"]


def test_an_absent_cache_is_not_made():
    told = look_at_cache()
    assert (told.verdict, default_cache_path().exists()) == ("ok", False)
    assert told.fact.startswith("none yet; it would be")


def test_a_sound_cache_is_counted_and_left_alone(monkeypatch):
    path = default_cache_path()
    fill(path)
    asked, real = [], sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *words, **options: asked.append(words) or real(*words, **options)
    )
    before = snapshot(path.parent)
    told = look_at_cache()
    assert told.verdict == "ok"
    assert "20 values, sound" in told.fact
    assert look_at_cache(quick=True).values["sampled"] == 20
    assert snapshot(path.parent) == before
    assert all(words[0].endswith("?immutable=1") for words in asked)
    with EmbeddingCache(path) as cache:  # in use, with values still in its log
        cache.put_many({b"k" * 32: np.zeros(4, dtype=np.float32)})
        assert look_at_cache().values["values"] == 21
        assert asked[-1][0].endswith("?mode=ro")
        before = snapshot(path.parent)
        look_at_cache()
        assert list(snapshot(path.parent)) == list(before)


def test_a_damaged_cache_is_a_problem():
    path = default_cache_path()
    fill(path, 200)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    told = look_at_cache()
    assert (told.verdict, told.remedy) == ("problem", "delete it; what it held is computed again")
    path.write_bytes(b"rubbish" * 1000)
    assert "file is not a database" in look_at_cache().fact
    path.write_bytes(data)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE bioxfer_embedding_1 SET data = zeroblob(256) WHERE rowid % 4 = 1")
    connection.close()
    told = look_at_cache(quick=True)
    assert told.verdict == "problem"
    assert re.search(r"49 of 200 values looked at are damaged", told.fact)  # of 50 one was zeros before


def test_a_foreign_database_is_a_problem_and_an_empty_one_is_none():
    path = default_cache_path()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    assert "it is a database of another program" in look_at_cache().fact
    path.write_bytes(b"")
    assert look_at_cache().verdict == "ok"


def test_a_read_only_cache_is_a_problem(monkeypatch):
    path = default_cache_path()
    fill(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root may write anywhere
    told = look_at_cache()
    assert (told.verdict, "not writable" in told.fact) == ("problem", True)
    assert told.remedy.startswith("set BIOXFER_CACHE")
    path.unlink()
    told = look_at_cache()
    assert (told.verdict, told.fact.endswith("is not writable")) == ("problem", True)


def test_a_cache_that_was_set_aside_is_told():
    fill(default_cache_path())
    default_cache_path().with_name("embeddings.sqlite.damaged-1").write_bytes(b"x")
    told = [f for f in soundness.see_cache(quick=True) if f.verdict == "note"]
    assert [f.remedy for f in told] == ["delete it"]


def test_a_large_cache_is_read_for_a_limited_time(tmp_path):
    path = tmp_path / "c.sqlite"
    with EmbeddingCache(path) as cache:
        cache.put_many({n.to_bytes(32, "big"): np.zeros(256, dtype=np.float32) for n in range(20_000)})
    state = inspect_cache(path, seconds=0.0)
    assert (state.whole, state.complaint, state.damaged) == (False, "", 0)
    assert 0.9 * cache_module._SAMPLE <= state.sampled <= cache_module._SAMPLE
    state = inspect_cache(path, seconds=60.0)
    assert (state.whole, state.values) == (True, 20_000)


def test_a_cache_that_a_run_is_writing_to_is_not_called_damaged(monkeypatch):
    fill(default_cache_path())

    def locked(*place, **options):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(cache_module.sqlite3, "connect", locked)
    (told,) = soundness.see_cache(quick=True)
    assert (told.verdict, told.remedy) == ("note", "")
    assert told.fact.endswith("(database is locked): another process is writing to it")


def test_a_cache_that_may_not_be_read_is_not_to_be_deleted(monkeypatch):
    fill(default_cache_path())

    def closed(*place, **options):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(cache_module.sqlite3, "connect", closed)
    (told,) = soundness.see_cache(quick=True)
    assert told.verdict == "problem"
    assert "could not be looked at" in told.fact
    assert told.remedy.startswith("set BIOXFER_CACHE")


def test_offline_is_told(monkeypatch):
    assert found(settings.see_network)["network"].fact.startswith("allowed")
    monkeypatch.setenv("BIOXFER_OFFLINE", "1")
    assert found(settings.see_network)["network"].fact.startswith("forbidden (BIOXFER_OFFLINE)")
