"""The distribution stands alone: what it imports, its README's snippets, its wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
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
    assert len(SNIPPETS) == 2


def test_readme_snippets_run_as_printed():
    # in one process, which costs seconds to start; each in a namespace of its own
    run_python("\n".join(f"exec({snippet!r}, {{}})" for snippet in SNIPPETS))


def test_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fastclip_kernels.__version__
    assert [re.split(r"[>=;]", each)[0] for each in project["dependencies"]] == ["torch", "triton"]


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    # needs the package registry for the build backend, unless it is cached
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
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
