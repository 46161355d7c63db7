"""Every command and every piece of Python in docs/ runs, page by page, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.data.shard_files import write_shards

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.M | re.S)

# Pages whose commands are tested elsewhere, or need what a test does not have
ELSEWHERE = {
    "performance.md": "benchmarks: tests/bench",
    "doctor.md": "tests/doctor/test_command.py",
    "evaluate.md": "tests/benchmark/test_docs.py",
}
# What a page takes for given: it is made by these blocks of another one
NEEDS = {"share.md": ("getting-started.md", 1)}


class Block(NamedTuple):
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall((ROOT / "docs" / page).read_text())]


def pages_to_run() -> list[str]:
    return [page.name for page in PAGES if page.name not in ELSEWHERE and blocks_of(page.name)]


@pytest.fixture
def folder(tmp_path):
    """A folder with what a reader of the pages has: the clone's demo set, pictures, shards, and the command."""
    (tmp_path / "fastclip").mkdir()
    (tmp_path / "fastclip/demo").symlink_to(ROOT / "fastclip/demo")
    for name in ("cat", "dog"):
        Image.new("RGB", (70, 90), (name == "cat" and "red") or "blue").save(
            tmp_path / f"{name}.jpg"
        )
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            image = Image.new("RGB", (70, 90), (40 * i, 90, 200))
            image.save(tmp_path / "pictures" / name / f"{i}.jpg")
    write_shards(tmp_path / "shards", [2] * 100)
    (tmp_path / "bin").mkdir()
    for name, start in (("fastclip", "-m fastclip"), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {start} "$@"\n')
        script.chmod(0o755)
    return tmp_path


def run(block: Block, folder: Path) -> None:
    text = block.text
    if block.language == "bash":
        # the package would be looked for in the working folder, where only its demo set is
        words = ["bash", "-euo", "pipefail", "-c", text]
    else:
        words = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", text]
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        ),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


# Several start torch a dozen times, which takes a minute on one core.
@pytest.mark.slow
@pytest.mark.parametrize("page", pages_to_run())
def test_a_page_runs_from_top_to_bottom(page, folder):
    if page in NEEDS:
        needed, count = NEEDS[page]
        for block in blocks_of(needed)[:count]:
            run(block, folder)
    for block in blocks_of(page):
        run(block, folder)


def test_no_page_is_left_out():
    """A page is run, or it is said where its commands are tested."""
    for page in PAGES:
        assert page.name in ELSEWHERE or page.name in pages_to_run() or not blocks_of(page.name)
    assert set(ELSEWHERE) <= {page.name for page in PAGES}


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "README.md"]:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
