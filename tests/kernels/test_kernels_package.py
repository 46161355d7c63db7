"""The distribution stands alone: what it imports, its README's snippets, its wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

import fastclip_kernels

ROOT = Path(__file__).parents[2] / "kernels"
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run_python(code: str) -> None:
    """Run `code` in a fresh process that finds the package in the repository."""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", path + code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_imports_without_triton_and_without_the_trainer():
    run_python(
        "sys.modules['triton'] = None  # an import of it now fails\n"
        "import fastclip_kernels, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "others = {'fastclip', 'open_clip', 'flash_attn', 'numpy.testing'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
        "fastclip_kernels.clip_loss(torch.eye(3), torch.eye(3), 1.0)"
    )


def test_readme_has_snippets():
    assert len(SNIPPETS) == 3


def test_readme_snippets_run_as_printed():
    # in one process, which costs seconds to start; each in a namespace of its own
    run_python("\n".join(f"exec({snippet!r}, {{}})" for snippet in SNIPPETS))


def test_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fastclip_kernels.__version__
    assert [re.split(r"[>=;]", each)[0] for each in project["dependencies"]] == ["torch", "triton"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # needs the package registry for the build backend, unless it is cached
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, ROOT],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fastclip_kernels").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"fastclip_kernels-{fastclip_kernels.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == package
    assert info + "licenses/LICENSE" in names
    assert "fastclip_kernels/py.typed" in names


def distribution_and_what_it_needs(name: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that `pip install name` would bring, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for needed in found[name].requires or []:
            if "extra ==" not in needed:
                waiting.append(re.split(r"[ ;<>=!~\[(]", needed)[0])
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The Python of a new environment that has torch and what torch needs, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    beside = folder / "torch_and_what_it_needs"  # links: installing torch anew takes gigabytes
    beside.mkdir()
    for each in distribution_and_what_it_needs("torch").values():
        for top in {file.parts[0] for file in each.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__" and not (beside / top).exists():
                (beside / top).symlink_to(each.locate_file(top))
    own = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", own], capture_output=True, text=True, check=True)
    Path(purelib.stdout.strip(), "torch.pth").write_text(f"{beside}\n")
    return python


@pytest.mark.slow
def test_installed_alone_the_readmes_snippets_run_as_printed(wheel, bare_python, tmp_path):
    # without --no-deps: torch and what it brings must be all that the wheel asks for
    pip = [sys.executable, "-m", "pip", "--python", bare_python, "install", "--no-index", "--quiet"]
    subprocess.run([*pip, wheel], check=True)
    code = [
        "import importlib.util, sys",
        "others = ('open_clip', 'open_clip_train', 'fastclip', 'numpy', 'pytest')",
        "found = [name for name in others if importlib.util.find_spec(name)]",
        "assert not found, found",
        *(f"exec({snippet!r}, {{}})" for snippet in SNIPPETS),
        "import fastclip_kernels",
        "assert fastclip_kernels.__file__.startswith(sys.prefix), fastclip_kernels.__file__",
    ]
    done = subprocess.run(
        [bare_python, "-I", "-c", "\n".join(code)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
