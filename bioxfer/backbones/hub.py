"""Models by their hub names: which commit, where the files lie, and whether they are what they were.

A name of the Hugging Face hub says who and what, not which: its files change with every commit. So a commit
is always named, as ``owner/name@`` and 40 hex digits, or pinned: ``bioxfer models download owner/name`` asks
the hub for the present commit, and from then on the bare name means that one on this machine. The hub also
states a hash for each file (sha256 of the large ones, git's of the small ones); all are checked on arrival
and kept as sha256 in ``source.json`` beside the files, against which they are held before every use.

What `is_hub_name` takes for such a name: ``owner/name`` with one slash, perhaps followed by ``@`` and a
revision, that does not begin with ``.`` or ``~``, does not end in ``.pt`` or ``.safetensors``, and is no
folder that is here. Models lie in ``huggingface/owner--name/COMMIT`` in torch.hub's cache folder; those that
transformers keeps in its own cache are used where they are, if their commit is named or is what its branch
``main`` was there.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioxfer.backbones import downloads
from bioxfer.backbones.vocabulary import ADDED_FILES, TOKENIZER_FILES
from bioxfer.backbones.weights import WeightsCheck, hub_folder, is_offline, sha256_of
from bioxfer.errors import OfflineError, OutputError, UsageError, WeightsError
from bioxfer.machine import expand_home

__all__ = [
    "HUB",
    "SOURCE",
    "TEXTS",
    "HubModel",
    "check_model",
    "fetch_model",
    "find_folder",
    "find_model",
    "is_hub_name",
    "list_models",
    "models_folder",
]

HUB = "https://huggingface.co"
"""Where models are fetched from if no mirror is named."""

SOURCE = "source.json"
"""What name, commit and hashes of a model that was fetched are kept in, beside its files."""

_PIN = "pinned"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
# The hub has no -- and no .. in names, which so can be written as folders.
_NAME = re.compile(rf"(?![^@]*(?:--|\.\.))({_PART}/{_PART})(?:@(.*))?", re.DOTALL)
TEXTS = ("config.json", *TOKENIZER_FILES, *ADDED_FILES)
"""Files that are read beside the weights."""

_SMALL = 64 << 20  # bytes of a file that is no weights; a vocabulary has some kilobytes
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

Progress = Callable[[int, int | None], None]

log = logging.getLogger("bioxfer")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub that is on this disk.

    Attributes
    ----------
    name : str
        ``owner/name``.
    revision : str
        Its commit, 40 hex digits.
    folder : Path
        Where its files lie.
    pinned : bool
        Whether the bare name means this commit.
    """

    name: str
    revision: str
    folder: Path
    pinned: bool

    @property
    def label(self) -> str:
        """The name with its commit."""
        return f"{self.name}@{self.revision}"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a commit, as the hub states it; of its hashes one is there."""

    name: str
    size: int
    sha256: str
    git: str


def is_hub_name(text: str) -> bool:
    """Tell a hub name from a path; the rule stands above."""
    if text.startswith((".", "~")) or text.endswith((".pt", ".safetensors")):
        return False
    return _NAME.fullmatch(text) is not None and not os.path.isdir(text)


def models_folder() -> Path:
    """Folder in which models of the hub are kept."""
    return hub_folder() / "huggingface"


def find_model(text: str, *, offline: bool = False) -> HubModel:
    """Find a model by its hub name, fetch it if its commit is named and not here, and check its files.

    Parameters
    ----------
    text : str
        ``owner/name`` or ``owner/name@COMMIT``.
    offline : bool, optional
        Open no socket; so does ``BIOXFER_OFFLINE=1``.

    Raises
    ------
    UsageError
        If no commit is named or pinned, or what is named is none.
    OfflineError
        If it would have to be fetched and the network is forbidden.
    WeightsError
        If a file is missing or damaged, or cannot be fetched.
    """
    name, revision = _parse(text)
    if not revision:
        revision = _read_pin(models_folder(), name) or _read_main(name)
        if not revision:
            raise UsageError(
                f"{name} is no folder here, and as a name of the hub it names no commit, without which it "
                f"may mean another model tomorrow; run: bioxfer models download {name}, which pins the "
                f"present one, or give it as {name}@ and its 40 hex digits"
            )
    folder = _place(models_folder(), name, revision)
    if (folder / SOURCE).is_file():
        check_model(folder)
    elif (elsewhere := _transformers_cache(name) / "snapshots" / revision / "config.json").is_file():
        folder = elsewhere.parent
        _check_blobs(folder)
    else:
        folder = fetch_model(f"{name}@{revision}", offline=offline).folder
    return HubModel(name, revision, folder, pinned=_read_pin(models_folder(), name) == revision)


def fetch_model(
    text: str,
    *,
    into: str | Path | None = None,
    offline: bool = False,
    base_url: Sequence[str] = (),
    progress: Progress | None = None,
) -> HubModel:
    """Make sure that a model of the hub is on this disk, and sound; its files appear whole or not at all.

    Files that are there and fit are left as they are. Without a commit the present one is asked for, and
    pinned.

    Parameters
    ----------
    text : str
        ``owner/name`` or ``owner/name@COMMIT``.
    into : path, optional
        Folder for all models; `models_folder` if not given.
    offline : bool, optional
        Open no socket; so does ``BIOXFER_OFFLINE=1``.
    base_url : sequence of str, optional
        Web addresses of hubs, tried in turn; if not given, those of ``BIOXFER_MIRRORS`` and then `HUB`.
    progress : callable, optional
        Called with bytes so far and, where known, bytes in all, for each file of weights.

    Raises
    ------
    UsageError
        If the name, the commit or an address is none.
    OfflineError
        If the network is needed and forbidden.
    WeightsError
        If a file cannot be fetched, or stays damaged, or the model is none that is computed here.
    OutputError
        If it cannot be written.
    """
    from bioxfer.backbones.modelfolder import ModelConfig

    name, revision = _parse(text)
    root = models_folder() if into is None else Path(into)
    ready = _place(root, name, revision) if revision else None
    if ready is not None and (ready / SOURCE).is_file():
        try:
            check_model(ready)
            return HubModel(name, revision, ready, pinned=_read_pin(root, name) == revision)
        except WeightsError as damage:
            if is_offline(offline):
                raise
            log.warning("%s; fetching it again", damage)
    if is_offline(offline):
        raise OfflineError(
            f"{text} is not in {root}, and no network is used here; where it is allowed, run: bioxfer models "
            f"download {text}"
        )
    hubs = [place.rstrip("/") for place in downloads.mirrors(base_url, publisher=HUB) if "://" in place]
    if not hubs:
        raise UsageError(
            f"{name} is fetched from web addresses that answer as the hub does; for a folder of this "
            "machine, give the model's own folder in place of its name"
        )
    commit = _ask_commit(hubs, name, revision)
    folder = _place(root, name, commit)
    files = _ask_files(hubs, name, commit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: weights cannot be stored there ({error.strerror}); set TORCH_HOME"
        ) from error
    wanted = _choose(files, name)
    for file in [*wanted]:
        _fetch_file(hubs, name, commit, file, folder, progress=progress)
        if file.name == "config.json":
            ModelConfig.read(folder)  # it comes first: gigabytes of no use are not fetched
    for index in [file for file in wanted if file.name.endswith(".index.json")]:
        for file in _shards_of(folder / index.name, files):
            _fetch_file(hubs, name, commit, file, folder, progress=progress)
            wanted.append(file)
    hashes = {file.name: sha256_of(folder / file.name) for file in wanted}
    _write(folder / SOURCE, json.dumps({"name": name, "revision": commit, "files": hashes}, indent=1) + "\n")
    if not revision:
        _pin(root, name, commit)
    return HubModel(name, commit, folder, pinned=_read_pin(root, name) == commit)


def check_model(folder: Path) -> list[WeightsCheck]:
    """Hold the files of a model that `fetch_model` fetched against their recorded hashes.

    Parameters
    ----------
    folder : Path
        Holds ``source.json``.

    Returns
    -------
    list of WeightsCheck
        One for each file.

    Raises
    ------
    WeightsError
        If a file is missing, damaged or exchanged, or the record is.
    """
    record = folder / SOURCE
    again = "run: bioxfer models download"
    try:
        read = json.loads(record.read_text(encoding="utf-8"))
        name, files = f"{read['name']}@{read['revision']}", dict(read["files"])
        if not files or not all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in files.values()):
            raise ValueError("a hash is none")
        if any("/" in file or "\\" in file for file in files):
            raise ValueError("a file is in another folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{record}: cannot be read ({error}); delete the folder and fetch it again"
        ) from error
    found = []
    for file, digest in files.items():
        path = folder / file
        if not path.is_file():
            raise WeightsError(f"{path} is missing; {again} {name}")
        actual = sha256_of(path)
        if actual != digest:
            raise WeightsError(
                f"{path}: sha256 is {actual}, but {digest} is recorded in {SOURCE}; the file is damaged or "
                f"was exchanged: {again} {name}"
            )
        found.append(WeightsCheck(path=path, sha256=actual, known=True))
    return found


def find_folder(wanted: str, *, offline: bool = False) -> tuple[str | None, Path]:
    """Find the folder of a hub name or a path, its files checked, and its name if it has one."""
    if is_hub_name(wanted):
        model = find_model(wanted, offline=offline)
        return model.label, model.folder
    folder = Path(wanted)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{wanted}: holds no config.json, so it is no folder of a model; check the path")
    if (folder / SOURCE).is_file():
        check_model(folder)
    return None, folder


def list_models() -> list[HubModel]:
    """List the models of the hub that `fetch_model` has fetched."""
    found = []
    root = models_folder()
    for source in sorted(root.glob(f"*--*/*/{SOURCE}")) if root.is_dir() else ():
        name = source.parent.parent.name.replace("--", "/", 1)
        revision = source.parent.name
        if _NAME.fullmatch(name) and _is_commit(revision):
            found.append(HubModel(name, revision, source.parent, pinned=_read_pin(root, name) == revision))
    return found


def _parse(text: str) -> tuple[str, str]:
    """Split a hub name; the revision is empty if there is none."""
    parts = _NAME.fullmatch(text)
    if parts is None:
        raise UsageError(f"{text!r} is no name of the hub; write it as owner/name or owner/name@COMMIT")
    name, revision = parts[1], parts[2]
    if revision is None:
        return name, ""
    if not _is_commit(revision):
        raise UsageError(
            f"{revision!r} is no commit of {name}, which has 40 hex digits; branches and tags change: take "
            f"the commit that the hub shows, or run: bioxfer models download {name}"
        )
    return name, revision


def _is_commit(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", text) is not None


def _place(root: Path, name: str, revision: str) -> Path:
    return root / name.replace("/", "--") / revision


def _read_pin(root: Path, name: str) -> str:
    return _read_commit(root / name.replace("/", "--") / _PIN)


def _read_main(name: str) -> str:
    """Read what the branch ``main`` was when transformers fetched a model; empty if it has not."""
    found = _read_commit(_transformers_cache(name) / "refs" / "main")
    if found:
        log.info("%s: commit %s, which is in the cache of transformers", name, found)
    return found


def _read_commit(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return text if _is_commit(text) else ""


def _pin(root: Path, name: str, commit: str) -> None:
    before = _read_pin(root, name)
    _write(root / name.replace("/", "--") / _PIN, f"{commit}\n")
    if before and before != commit:
        log.warning(
            "%s was pinned to %s and is now to %s; what was trained on the former needs it by name, as %s@%s",
            *(name, before, commit, name, before),
        )
    elif not before:
        log.info("%s is pinned to %s", name, commit)


def _transformers_cache(name: str) -> Path:
    """Folder in which transformers keeps a model."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    folder = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return expand_home(folder) / f"models--{name.replace('/', '--')}"


def _check_blobs(folder: Path) -> None:
    """Hold the files of transformers' cache against the hashes that they are named by."""
    for path in sorted(folder.iterdir()):
        blob = path.resolve().name
        if path.name not in TEXTS and not path.name.endswith((".safetensors", ".bin", ".index.json")):
            continue
        if re.fullmatch("[0-9a-f]{64}", blob) and sha256_of(path) != blob:
            raise WeightsError(
                f"{path}: is not what its name in the cache says; delete it and fetch it again"
            )
        if _is_commit(blob) and _git_hash(path.read_bytes()) != blob:
            raise WeightsError(
                f"{path}: is not what its name in the cache says; delete it and fetch it again"
            )


def _git_hash(data: bytes) -> str:
    """Hash a file as git does."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _ask_commit(hubs: Sequence[str], name: str, revision: str) -> str:
    what = f"{name}@{revision}" if revision else name
    answer = _ask(hubs, f"api/models/{name}/revision/{revision or 'main'}", what=what)
    found = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(found, str) or not _is_commit(found):
        raise WeightsError(f"{name}: the hub did not say what its present commit is; try later")
    if revision and found != revision:
        raise WeightsError(
            f"{name}: asked for commit {revision}, the hub answered with {found}; check the commit"
        )
    return found


def _ask_files(hubs: Sequence[str], name: str, commit: str) -> dict[str, _File]:
    answer = _ask(hubs, f"api/models/{name}/tree/{commit}", what=f"{name}@{commit}")
    files = {}
    try:
        for entry in answer:
            if entry["type"] != "file" or "/" in entry["path"] or "\\" in entry["path"]:
                continue
            large = entry.get("lfs") or {}
            file = _File(str(entry["path"]), int(entry["size"]), str(large.get("oid", "")), str(entry["oid"]))
            if not re.fullmatch("[0-9a-f]{64}", file.sha256) and (large or not _is_commit(file.git)):
                raise ValueError(f"no hash of {file.name}")
            files[file.name] = file
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{name}: the hub's list of files cannot be read ({error}); try later") from error
    return files


def _choose(files: Mapping[str, _File], name: str) -> list[_File]:
    """Choose the files that are needed: config, vocabulary, and one form of the weights."""
    if "config.json" not in files or not any(file in files for file in TOKENIZER_FILES):
        lacks = "config.json" if "config.json" not in files else f"tokenizer ({', '.join(TOKENIZER_FILES)})"
        raise WeightsError(
            f"{name}: has no {lacks} on the hub, so it cannot be read here; take another model"
        )
    for weights in _WEIGHTS:
        for form in (weights, f"{weights}.index.json"):
            if form in files:
                return [files[text] for text in TEXTS if text in files] + [files[form]]
    raise WeightsError(f"{name}: has neither {' nor '.join(_WEIGHTS)} on the hub; it cannot be read here")


def _shards_of(index: Path, files: Mapping[str, _File]) -> Iterator[_File]:
    try:
        shards = sorted({str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: cannot be read ({error}); fetch it again") from error
    for shard in shards:
        if shard not in files or not shard.endswith((".safetensors", ".bin")):
            raise WeightsError(
                f"{index}: names {shard[:80]!r}, which is no shard on the hub; try another commit"
            )
        yield files[shard]


def _fetch_file(
    hubs: Sequence[str], name: str, commit: str, file: _File, folder: Path, *, progress: Progress | None
) -> None:
    target = folder / file.name
    if target.is_file() and _fits(target, file):
        return
    places = [f"{hub}/{name}/resolve/{commit}/{urllib.parse.quote(file.name)}" for hub in hubs]
    if file.sha256:
        downloads.fetch_weights(places, target, sha256=file.sha256, progress=progress)
        return

    def check(data: bytes) -> str:
        return "" if _git_hash(data) == file.git else "it is not what the hub says it is"

    data = _get(places, what=f"{name}: {file.name}", check=check)
    _write(target, data)


def _fits(path: Path, file: _File) -> bool:
    if file.sha256:
        return sha256_of(path) == file.sha256
    return path.stat().st_size == file.size and _git_hash(path.read_bytes()) == file.git


def _write(path: Path, content: str | bytes) -> None:
    from bioxfer.output import publish

    with publish(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _ask(hubs: Sequence[str], path: str, *, what: str) -> Any:
    """Ask the hubs in turn, and read the first answer that is JSON."""

    def check(data: bytes) -> str:
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            return f"its answer is no JSON (it starts with {data[:16]!r})"
        return ""

    return json.loads(_get([f"{hub}/{path}" for hub in hubs], what=what, check=check))


def _get(places: Sequence[str], *, what: str, check: Callable[[bytes], str]) -> bytes:
    """Fetch something small from the first place that has it."""
    complaints = dict.fromkeys(places, "")
    left = list(places)
    for attempt in range(downloads.ATTEMPTS):
        if attempt and left:
            time.sleep(downloads.PAUSE * attempt)
        for place in tuple(left):
            try:
                data = _read(place)
            except _RefusalError as refusal:
                complaints[place] = str(refusal)
                if refusal.final:
                    left.remove(place)
                continue
            complaints[place] = check(data)
            if not complaints[place]:
                return data
    told = "; ".join(f"{urllib.parse.urlsplit(place).netloc}: {said}" for place, said in complaints.items())
    raise WeightsError(f"{what} could not be fetched ({told}); check the name and its commit, or try later")


class _RefusalError(Exception):
    """Why a place did not give something; ``final`` where it never will."""

    def __init__(self, told: str, *, final: bool) -> None:
        super().__init__(told)
        self.final = final


def _read(place: str) -> bytes:
    request = urllib.request.Request(place, headers={"Accept-Encoding": "identity"})
    try:
        with downloads.opener().open(request, timeout=downloads.TIMEOUT) as response:
            data: bytes = response.read(_SMALL + 1)
            length = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        error.close()
        # What needs an account is answered as if it were not there.
        account = (
            ", it may need an account: fetch it by hand and give its folder"
            if error.code in (401, 403)
            else ""
        )
        final = 300 <= error.code < 500 and error.code not in downloads.TEMPORARY
        raise _RefusalError(
            f"the server answered {error.code} {error.reason}{account}", final=final
        ) from error
    except downloads.RefusedError as error:
        raise _RefusalError(str(error), final=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _RefusalError(f"no connection ({getattr(error, 'reason', error)})", final=False) from error
    if len(data) > _SMALL:
        raise _RefusalError(f"more than {_SMALL} bytes came", final=True)
    if length.isdigit() and len(data) != int(length):
        raise _RefusalError(f"{len(data)} of {length} bytes arrived", final=False)
    return data
