"""The doors between rooms, read from the source; and what an import or a help text loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastclip"
KERNELS = ROOT / "kernels" / "fastclip_kernels"

SHARED = {"errors", "optional"}
# A room may import itself and these. "" is the package itself (`from fastclip import __version__`).
DOORS: dict[str, set[str]] = {
    "": {"api"},
    "__main__": {"cli"},
    "errors": set(),
    "optional": {"errors"},
    "config": {"errors"},
    "data": {"config", *SHARED},
    "curate": {"config", "data", *SHARED},
    "model": {"config", *SHARED},
    "optim": {"config", *SHARED},
    "eval": {"config", *SHARED},
    "train": {"", "config", "data", "eval", "model", "optim", *SHARED},
    "api": {"config", "data", "model", *SHARED},
    "doctor": {"", "config", "data", "model", "optim", "train", *SHARED},
    "cli": {
        "",
        "api",
        "config",
        "curate",
        "data",
        "doctor",
        "eval",
        "model",
        "optim",
        "train",
        *SHARED,
    },
}
HEAVY = ("nvidia.dali", "webdataset", "tensorboard", "torch.utils.tensorboard", "wandb", "triton")


class Import(NamedTuple):
    """`module` imported in line `line`, by the module called `by`."""

    module: str
    line: int
    by: str


def imports_of(source: str, by: str, is_package: bool) -> Iterator[Import]:
    """Every absolute name that `source` imports, anywhere; `from a import b` gives a.b."""
    here = by.split(".") if is_package else by.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, by)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield Import(".".join([*parts, alias.name]), node.lineno, by)


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_in(folder: Path) -> list[Import]:
    return [
        found
        for name, path in modules(folder)
        for found in imports_of(path.read_text(), name, path.name == "__init__.py")
    ]


def room_of(module: str) -> str | None:
    """The room of a `fastclip...` name; "" for the package's own names, None for other packages."""
    parts = module.split(".")
    if parts[0] != "fastclip":
        return None
    is_room = len(parts) > 1 and (
        (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
    )
    return parts[1] if is_room else ""


def broken_door(found: Import) -> str | None:
    source, target = room_of(found.by), room_of(found.module)
    if source is None or target is None or source == target:
        return None
    if source not in DOORS:
        return f"{found.by}: the room {source!r} has no entry in DOORS"
    if target not in DOORS[source]:
        return (
            f"{found.by}, line {found.line}: {source or 'fastclip'} must not import {found.module}"
        )
    return None


def test_rooms_import_only_through_their_doors() -> None:
    found = imports_in(PACKAGE)
    assert len(found) > 100
    assert [line for line in map(broken_door, found) if line] == []


def test_config_is_a_leaf() -> None:
    """Nothing but the standard library and our errors: flags are parsed before torch is loaded."""
    foreign = [
        found
        for found in imports_in(PACKAGE / "config")
        if found.module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert {f.module for f in foreign if room_of(f.module) not in ("config", "errors")} == set()


def test_kernels_do_not_know_the_trainer() -> None:
    found = imports_in(KERNELS)
    assert found
    allowed = {"torch", "triton", "fastclip_kernels"} | set(sys.stdlib_module_names)
    foreign = [f for f in found if f.module.split(".")[0] not in allowed]
    # flash-attn is looked for in one file only
    assert [f for f in foreign if not f.by.endswith("attention.dispatch")] == []


def tried_imports(source: str) -> Iterator[int]:
    """Lines of `try` statements that import something and go on without it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Try):
            continue
        imports = any(
            isinstance(inner, (ast.Import, ast.ImportFrom))
            for statement in node.body
            for inner in ast.walk(statement)
        )
        caught = {n.id for h in node.handlers for n in ast.walk(h) if isinstance(n, ast.Name)}
        if imports and caught & {"ImportError", "ModuleNotFoundError"}:
            yield node.lineno


def test_only_optional_tries_imports() -> None:
    assert list(tried_imports("try:\n    import wandb\nexcept ImportError:\n    wandb = None"))
    offenders = [
        f"{name}, line {line}"
        for name, path in modules(PACKAGE)
        if name != "fastclip.optional"
        for line in tried_imports(path.read_text())
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("by", "line", "broken"),
    [
        ("fastclip.data.shards", "from fastclip.model.clip import CLIP", True),
        ("fastclip.data.shards", "from ..model import clip", True),
        ("fastclip.data.shards", "from . import draws", False),
        ("fastclip.data.shards", "def f():\n    import fastclip.train.loop", True),
        ("fastclip.config.flags", "from fastclip.optional import find", True),
        ("fastclip.eval.runner", "from fastclip.train import loop", True),
        ("fastclip.train.run", "from fastclip.cli import main", True),
        ("fastclip.train.run", "from fastclip import __version__", False),
        ("fastclip.train.run", "from fastclip.data.loader import Loader", False),
        ("fastclip.model.clip", "import torch", False),
        ("fastclip.errors", "from fastclip import api", True),
    ],
)
def test_a_forbidden_import_is_seen(by: str, line: str, broken: bool) -> None:
    assert any(map(broken_door, imports_of(line, by, is_package=False))) == broken


def loaded_after(code: str) -> set[str]:
    """The names in `sys.modules` of a fresh process after `code`."""
    report = "\nimport json, sys\nprint('LOADED', json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rsplit("LOADED", maxsplit=1)[1]))


@pytest.mark.parametrize(
    "code",
    [
        "import fastclip",
        "from fastclip.cli.main import main; main(['--help'])",
        "from fastclip.cli.main import main; main(['train', '--help'])",
        "from fastclip.cli.main import main; main(['train', '--lr', 'x'])",
        "from fastclip.cli.main import main; main(['train', '--trace'])",
        "from fastclip.cli.main import main; main(['doctor', '--help'])",
    ],
)
def test_nothing_heavy_is_loaded_at_start(code: str) -> None:
    loaded = loaded_after(code)
    assert loaded & {"torch", "numpy", "PIL", "tokenizers", *HEAVY} == set()
    assert "fastclip" in loaded


def test_public_names_load_no_data_pipeline() -> None:
    loaded = loaded_after("import fastclip; fastclip.create_model, fastclip.get_tokenizer")
    assert loaded & {"nvidia.dali", "webdataset", "tensorboard", "wandb"} == set()
    assert "torch" in loaded


def test_public_names() -> None:
    import fastclip

    assert set(fastclip.__all__) <= set(dir(fastclip))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        fastclip.nonsense  # noqa: B018
