"""The house keeps its rooms apart, imports lightly and never opens a pickle.

Everything here is read from the syntax trees of the package, or measured in a
fresh process. A new module needs a place in `ROOMS`.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bioxfer
from bioxfer import errors

PACKAGE = Path(errors.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top of the house to its ground; a room imports only from below itself.
ROOMS = (
    "__main__",
    "cli",
    "doctor",
    "report",
    "distributed",
    "merging",
    "jobs",
    "prediction",
    "splitting",
    "rows",
    "training",
    "represented",
    "exchange",
    "vectors",
    "containers",
    "estimators",
    "pretrain",
    "corpus",
    "attention_training",
    "attention_fitting",
    "transfer_data",
    "residue_training",
    "residue_labels",
    "judgement",
    "residue_judging",
    "residue_fitting",
    "residue_scores",
    "residues",
    "residue_tasks",
    "transfer",
    "lora",
    "draws",
    "head_training",
    "honesty",
    "curves",
    "selection",
    "trunks",
    "solvers",
    "embedding",
    "embeddings",
    "engine",
    "workers",
    "windows",
    "heads",
    "attention",
    "headfile",
    "pooling",
    "neighbours",
    "tasks",
    "conformal",
    "families",
    "backbones",
    "cache",
    "breakdown",
    "evaluate",
    "alignment",
    "words",
    "audits",
    "clusters",
    "homology",
    "io",
    "cardtables",
    "cards",
    "checkpoints",
    "shards",
    "output",
    "relay",
    "gff",
    "annotated",
    "genes",
    "codons",
    "ids",
    "lines",
    "sequences",
    "quoting",
    "metadata",
    "machine",
    "errors",
)

# What `import bioxfer` must not pay for, and what these rooms import only where they use it.
HEAVY = {
    "torch",
    "pandas",
    "sklearn",
    "scipy",
    "Bio",
    "pyarrow",
    "h5py",
    "safetensors",
    "esm",
    "matplotlib",
    "ray",
    "transformers",
    "huggingface_hub",
}
LIGHT_ROOMS = {"cli", "io", "output", "lines", "sequences", "errors", "cache", "doctor", "machine"}

PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"socket", "urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
FORBIDDEN_CALLS = {
    "eval", "exec", "torch.save", "read_pickle", "to_pickle", "extractall", "unpack_archive",
    "yaml.load", "yaml.unsafe_load", "torch.hub.load", "os.system",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.fixture(params=MODULES, ids=name_of)
def module(request) -> Path:
    return request.param


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Give the full names of all that is imported anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def package_of(path: Path) -> tuple[str, ...]:
    return ("bioxfer", *path.relative_to(PACKAGE).parent.parts)


def imported_rooms(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(tree_of(path), package_of(path))]
    return {parts[1] if len(parts) > 1 else "" for parts in names if parts[0] == "bioxfer"}


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_module_has_a_room():
    strangers = {room_of(path) for path in MODULES} - set(ROOMS) - {"__init__"}
    assert not strangers, f"give {strangers} a place in ROOMS"


def test_imports_flow_downwards_only(module):
    room = room_of(module)
    if room == "__init__":
        return
    below = set(ROOMS[ROOMS.index(room) :])
    upwards = imported_rooms(module) - below - {"__version__"}
    assert not upwards, f"{name_of(module)} reaches up to {upwards}"


def test_no_room_imports_the_whole_house(module):
    if room_of(module) != "__init__":
        assert "" not in imported_rooms(module)


def test_the_arrows_are_seen():
    """The test above would pass on a reader that sees nothing."""
    assert {"embedding", "io", "sequences", "errors"} & imported_rooms(PACKAGE / "embedding.py") >= {
        "io",
        "errors",
    }
    source = "from . import heads\nfrom ..tasks import x\ndef f():\n    import bioxfer.predict"
    assert set(imported(ast.parse(source), ("bioxfer", "backbones"))) == {
        "bioxfer.backbones.heads",
        "bioxfer.tasks.x",
        "bioxfer.predict",
    }


def test_light_rooms_import_heavy_packages_only_where_they_use_them(module):
    if room_of(module) not in LIGHT_ROOMS | {"__init__"}:
        return
    for node in tree_of(module).body:
        found = {name.split(".")[0] for name in imported(node, package_of(module))} & HEAVY
        inside = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        assert not found or inside or types_only, f"{name_of(module)}, line {node.lineno}: {found}"


def load_in_fresh_process(name: str) -> tuple[float, set[str]]:
    """Import a module; give the processor seconds it took and the packages it loaded."""
    code = (
        f"import time, json, sys; start = time.process_time(); import {name}; "
        "print(json.dumps([time.process_time() - start, sorted({n.split('.')[0] for n in sys.modules})]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    seconds, loaded = json.loads(told.stdout)
    return seconds, set(loaded)


def test_import_is_light_and_fast():
    runs = [load_in_fresh_process("bioxfer") for _ in range(2)]
    assert min(seconds for seconds, _ in runs) < 0.5
    assert not HEAVY & runs[0][1]


def test_the_help_of_the_command_line_loads_nothing_heavy():
    assert not HEAVY & load_in_fresh_process("bioxfer.cli")[1]


def test_contract_6_no_pickle_is_written_or_read(module):
    tree = tree_of(module)
    assert not {name.split(".")[0] for name in imported(tree, package_of(module))} & PICKLERS
    for name, call in called(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        place = f"{name_of(module)}, line {call.lineno}: {name}"
        assert options.get("allow_pickle", "False") == "False", place
        if name == "torch.load":
            assert options.get("weights_only") == "True", place


def test_f34_nothing_runs_code_that_came_as_data(module):
    for name, call in called(tree_of(module)):
        last = name.rsplit(".", 1)[-1]
        place = f"{name_of(module)}, line {call.lineno}: {name}"
        assert name not in FORBIDDEN_CALLS, place
        assert "." not in name or last not in {"read_pickle", "to_pickle", "extractall", "unpack_archive"}, (
            place
        )
        for keyword in call.keywords:
            assert keyword.arg != "trust_remote_code", place
            assert not (keyword.arg == "shell" and ast.unparse(keyword.value) == "True"), place


def test_contract_8_only_backbones_and_the_cluster_know_the_network(module):
    if room_of(module) not in ("backbones", "distributed"):
        assert not {name.split(".")[0] for name in imported(tree_of(module), package_of(module))} & NETWORK


def test_modules_stay_readable(module):
    source = module.read_text(encoding="utf-8")
    assert source.count("\n") < 600, "one idea for each module: cut it in two"
    tree = tree_of(module)
    assert ast.get_docstring(tree), "say what the module is for"
    assert "from __future__ import annotations" in source


def test_options_are_never_passed_through_unseen(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.args.kwarg is None, f"{name_of(module)}, line {node.lineno}: {node.name}(**...)"


def test_the_tree_of_errors_is_drawn_as_it_is():
    drawn, path = {}, []
    for line in inspect.getdoc(errors).splitlines():
        found = re.match(r"^[ │├└─]*?(\w+Error)\b", line)
        if found:
            depth = (found.start(1) - 4) // 4 if path else 0
            del path[depth:]
            drawn[found.group(1)] = path[-1] if path else "Exception"
            path.append(found.group(1))
    actual = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__}
    assert drawn == actual


def test_no_module_hides_an_exported_name():
    """Importing ``bioxfer.x`` anywhere sets ``bioxfer.x`` to the module, whatever ``__getattr__`` says."""
    hidden = {room_of(path) for path in MODULES} & set(bioxfer.__all__)
    assert not hidden, f"rename the modules {hidden}"


def test_every_exported_name_exists():
    for name in bioxfer.__all__:
        assert getattr(bioxfer, name) is not None
