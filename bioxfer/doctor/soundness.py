"""What is here, and whether it is sound: weights, heads, what they compute, the cache, and room for more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bioxfer import machine
from bioxfer.doctor.findings import Finding, Value, Verdict, count, hide_home
from bioxfer.errors import BioxferError

if TYPE_CHECKING:
    from bioxfer.backbones.hub import HubModel

__all__ = ["see_cache", "see_disks", "see_downloaded", "see_embedded", "see_heads", "see_self_test"]

_LITTLE_SPACE, _NO_SPACE = 1 << 30, 100 << 20  # bytes: a few models of the smallest kind; none
_PATIENCE = 2.0  # seconds to read a large cache
_CLOSED = "is not accessible to you"
_TOLERANCE = 1e-5  # relative; what README promises of float32 on any processor


def see_embedded() -> Iterator[Finding]:
    """Hold the embedded weights against their record."""
    from bioxfer.backbones.compact import COMPACT_WEIGHTS
    from bioxfer.backbones.shipped import read_shipped

    recorded = read_shipped().files.get("compact.safetensors")
    yield _see_shipped("backbone compact", COMPACT_WEIGHTS, recorded)


def _see_shipped(check: str, path: Path, recorded: str | None, *, more: str = "") -> Finding:
    from bioxfer.backbones.weights import sha256_of

    if not os.path.isfile(path):
        return Finding(check, "problem", f"{hide_home(path)} is missing", "install bioxfer again")
    try:
        found = sha256_of(path)
    except BioxferError as error:
        return Finding(check, "problem", hide_home(str(error)), "install bioxfer again")
    values: dict[str, Value] = {"sha256": found, "recorded": recorded, "size": path.stat().st_size}
    if recorded is None:
        fact = f"{hide_home(path)} did not come with this package"
        return Finding(check, "note", fact, "move it elsewhere and name it by its file", values)
    if found != recorded:
        fact = f"{hide_home(path)} is damaged or was exchanged: its sha256 is {found}, {recorded} is recorded"
        return Finding(check, "problem", fact, "install bioxfer again", values)
    size = machine.describe_size(path.stat().st_size)
    return Finding(
        check, "ok", f"in the package, {size}, sha256 {found[:16]}... as recorded{more}", values=values
    )


def see_heads() -> Iterator[Finding]:
    """Hold the ready heads against their record, and see that they load and fit the embedded backbone."""
    from bioxfer.backbones.compact import load_compact
    from bioxfer.backbones.shipped import read_shipped
    from bioxfer.prediction import READY_HEADS, list_heads, load_head

    recorded = read_shipped().files
    names = {Path(name).stem for name in recorded if name.startswith("heads/")} | set(list_heads())
    backbone = load_compact()
    for name in sorted(names):
        check, path = f"head {name}", READY_HEADS / f"{name}.safetensors"
        finding = _see_shipped(check, path, recorded.get(f"heads/{name}.safetensors"))
        if finding.verdict == "ok":
            try:
                head = load_head(name)
            except BioxferError as error:
                finding = Finding(check, "problem", hide_home(str(error)), "install bioxfer again")
            else:
                if head.fingerprint != backbone.fingerprint:
                    fact = (
                        f"was trained on the backbone {head.fingerprint}, the embedded one is "
                        f"{backbone.fingerprint}"
                    )
                    finding = Finding(check, "problem", fact, "install bioxfer again")
        yield finding


def see_downloaded(*, quick: bool) -> Iterator[Finding]:
    """Hold downloaded weights against their records."""
    from bioxfer.backbones import list_backbones
    from bioxfer.backbones.downloads import part_of
    from bioxfer.backbones.hub import list_models
    from bioxfer.backbones.weights import hub_folder, record_of

    folder = hub_folder()
    elsewhere = "set TORCH_HOME to a folder of yours"
    if _is_closed(folder / "any"):
        yield Finding("backbones", "problem", f"{hide_home(folder)} {_CLOSED}", elsewhere)
        return
    here = 0
    for info in list_backbones():
        if info.family == "compact" or "/" in info.name:
            continue
        path = folder / f"{info.name}.pt"
        check, again = f"backbone {info.name}", f"bioxfer models download {info.name}"
        if _is_closed(path):
            here += 1
            yield Finding(check, "problem", f"{hide_home(path)} {_CLOSED}", elsewhere)
        elif path.is_file():
            here += 1
            yield _see_weights(check, path, quick=quick)
        elif os.path.exists(record_of(path)):
            fact = f"{hide_home(record_of(path))} is here without its weights"
            yield Finding(check, "note", fact, f"{again}, or delete the record")
        part = part_of(path)
        if os.path.isfile(part):
            size = part.stat().st_size
            fact = f"an unfinished download, {machine.describe_size(size)} in {hide_home(part)}"
            yield Finding(check, "note", fact, f"{again} goes on with it; or delete it", {"size": size})
    for model in list_models():
        here += 1
        yield _see_hub_model(model, quick=quick)
    if not here:
        yield Finding(
            "backbones", "ok", f"no others in {hide_home(folder)}", values={"folder": hide_home(folder)}
        )


def _see_hub_model(model: HubModel, *, quick: bool) -> Finding:
    from bioxfer.backbones.hub import check_model

    check = f"backbone {model.name if model.pinned else model.label}"
    size = sum(file.stat().st_size for file in model.folder.iterdir() if file.is_file())
    values: dict[str, Value] = {"size": size, "revision": model.revision, "pinned": model.pinned}
    place = f"{machine.describe_size(size)} in {hide_home(model.folder)}"
    if quick:
        return Finding(check, "ok", f"{place}; its hashes are recorded; not read (--quick)", values=values)
    try:
        files = check_model(model.folder)
    except BioxferError as error:
        again = f"bioxfer models download {model.label}"
        return Finding(check, "problem", hide_home(str(error)), again, values)
    return Finding(check, "ok", f"{place}, {count(len(files), 'file')} as recorded", values=values)


def _see_weights(check: str, path: Path, *, quick: bool) -> Finding:
    from bioxfer.backbones.weights import find_damage, read_record, record_of, sha256_of

    size = path.stat().st_size
    place = f"{machine.describe_size(size)} in {hide_home(path)}"
    again = f"delete it, then bioxfer models download {path.stem}"
    values: dict[str, Value] = {"size": size, "sha256": None, "recorded": None}
    try:
        recorded = values["recorded"] = read_record(record_of(path))
        if quick:
            known = "its sha256 is recorded" if recorded else "it has no record yet"
            return Finding(check, "ok", f"{place}; {known}; not read (--quick)", values=values)
        found = values["sha256"] = sha256_of(path)
    except BioxferError as error:
        return Finding(check, "problem", hide_home(str(error)), again, values)
    if recorded is not None and found != recorded:
        fact = f"{place} is damaged or was exchanged: its sha256 is {found}, {recorded} is recorded"
        remedy = f"{again}; or delete the record, if the change was meant"
        return Finding(check, "problem", fact, remedy, values)
    if recorded is None and (damage := find_damage(path, found=found, expected=None)):
        return Finding(check, "problem", f"{place}: {damage}", again, values)
    known = "as recorded" if recorded else "not recorded before its first use"
    return Finding(check, "ok", f"{place}, sha256 {found[:16]}... {known}", values=values)


def see_self_test() -> Iterator[Finding]:
    """Embed some proteins, and hold the numbers against those kept."""
    from bioxfer.backbones.shipped import first_numbers, read_shipped

    kept = read_shipped().probes
    found = first_numbers(tuple(kept))
    largest = 0.0
    for protein, numbers in kept.items():
        scale = max(map(abs, numbers))
        apart = [abs(a - b) / scale for a, b in zip(numbers, found[protein], strict=True)]
        largest = max([largest, *(x if x == x else float("inf") for x in apart)])
    values: dict[str, Value] = {"difference": largest, "allowed": _TOLERANCE}
    fact = f"{count(len(kept), 'protein')} embedded; {largest:.0e} from the numbers kept in the package"
    if largest <= _TOLERANCE:
        yield Finding("self-test", "ok", fact, values=values)
    else:
        remedy = "try BIOXFER_KERNELS=off; if that mends it, please report this page"
        yield Finding("self-test", "problem", f"{fact}, {_TOLERANCE:.0e} are allowed", remedy, values)


def see_cache(*, quick: bool) -> Iterator[Finding]:
    """Look the embedding cache over."""
    from bioxfer.cache import default_cache_path, inspect_cache

    path = default_cache_path()
    elsewhere = "set BIOXFER_CACHE to a folder of yours, or do without (--no-resume)"
    if _is_closed(path):
        yield Finding("cache", "problem", f"{hide_home(path)} {_CLOSED}", elsewhere)
        return
    disk = machine.look_at_disk(path.parent)
    writable = disk.writable and (not path.exists() or os.access(path, os.W_OK))
    values: dict[str, Value] = {"path": hide_home(path), "writable": writable, "size": None, "values": None}
    if not path.exists():
        fact = f"none yet; it would be {hide_home(path)}"
        if writable:
            yield Finding("cache", "ok", fact, values=values)
        else:
            fact = f"{fact}, but {hide_home(disk.obstacle or disk.folder)} is "
            fact += "not writable" if disk.obstacle is None else "no folder"
            yield Finding("cache", "problem", fact, elsewhere, values)
        return
    state = inspect_cache(path, seconds=0.0 if quick else _PATIENCE)
    values |= {"size": state.size, "values": state.values, "sampled": state.sampled, "damaged": state.damaged}
    held = "" if state.values is None else f", {count(state.values, 'value')}"
    fact = f"{hide_home(path)}, {machine.describe_size(state.size)}{held}"
    delete = "delete it; what it held is computed again"
    if not state.readable:
        fact = f"{fact}, could not be looked at ({state.complaint})"
        if "locked" in state.complaint:
            yield Finding("cache", "note", f"{fact}: another process is writing to it", values=values)
        else:
            yield Finding("cache", "problem", fact, elsewhere, values)
    elif state.complaint:
        yield Finding("cache", "problem", f"{fact}: {state.complaint}", delete, values)
    elif state.damaged:
        fact = (
            f"{fact}: {state.damaged} of {state.sampled} values looked at are damaged, and will not be used"
        )
        yield Finding("cache", "problem", fact, f"check the disk, and {delete}", values)
    elif not writable:
        yield Finding("cache", "problem", f"{fact}, not writable", elsewhere, values)
    else:
        looked = "sound" if state.whole else f"{state.sampled} values looked at and sound, the rest not read"
        yield Finding("cache", "ok", f"{fact}, {looked}", values=values)
    for damaged in sorted(path.parent.glob(f"{path.name}.damaged-*")):
        if damaged.name[-1].isdigit():
            size = machine.describe_size(damaged.stat().st_size)
            yield Finding("cache", "note", f"{hide_home(damaged)}, {size}, was set aside", "delete it")


def see_disks() -> Iterator[Finding]:
    """Tell the free space where files are made."""
    from bioxfer.backbones.weights import hub_folder
    from bioxfer.cache import default_cache_path

    # tempfile.gettempdir would write a file to try.
    temporary = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
    places = {
        "cache": default_cache_path().parent,
        "weights": hub_folder(),
        "temporary files": Path(temporary),
    }
    for name, folder in places.items():
        disk = machine.look_at_disk(folder)
        values: dict[str, Value] = {"folder": hide_home(folder), "free": disk.free, "writable": disk.writable}
        fact = f"{machine.describe_size(disk.free)} free for {name} in {hide_home(folder)}"
        verdict: Verdict = "ok"
        if disk.free < _NO_SPACE:
            verdict = "problem"
        elif disk.free < _LITTLE_SPACE or not disk.writable:
            verdict = "note"
        first = "make room"
        # Unlike the others, the folder of temporary files is not made.
        absent = name == "temporary files" and not os.path.isdir(folder)
        if disk.obstacle is not None:
            verdict, first = "problem", "move it away"
            fact = f"{fact}; but {hide_home(disk.obstacle)} is no folder"
        elif _is_closed(folder):
            verdict, first = "problem" if absent else verdict, "have it opened to you"
            fact = f"{fact}, which {_CLOSED}"
        elif absent:
            verdict, first = "problem", "make it"
            fact = f"{fact}, which is not there"
        elif not disk.writable:
            fact = f"{fact}, which is not writable"
            first = first if disk.free < _LITTLE_SPACE else "have it opened to you"
        variable = {"cache": "BIOXFER_CACHE", "weights": "TORCH_HOME"}.get(name, "TMPDIR")
        remedy = "" if verdict == "ok" else f"{first}, or set {variable} to another folder"
        yield Finding(f"disk {name}", verdict, fact, remedy, values)


def _is_closed(path: Path) -> bool:
    """Tell whether a folder above it may not be entered; before Python 3.14, pathlib raises errors then."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        pass
    return False
