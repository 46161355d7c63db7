"""A pack keeps every good sample in order, and gives the same bytes however often it is killed."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastclip.cli.main import main
from fastclip.curate.shard_writer import write_shard
from fastclip.curate.shrink import shrink
from fastclip.data import shards
from fastclip.data.bad_samples import BAD_PICTURE, BadSampleNotes
from fastclip.data.image_header import BadImage, decode_rgb, read_header
from fastclip.data.shards import RawSample, read_shards
from fastclip.errors import ExitCode
from tests.data.bad_kinds import MAX_MEMBER, all_kinds
from tests.data.bad_pictures import png
from tests.data.pictures import encode, smooth
from tests.data.shard_files import fresh_seed, jpeg, sample_members, tar_bytes, write_shards
from tests.data.test_shards import all_gone


def pack(source: object, out: object, *words: object) -> int:
    common = ["--processes", "1", "--out", str(out)]
    return main(["data", "pack", str(source), *common, *map(str, words)])


def samples_of(folder: Path) -> tuple[list[RawSample], Counter[str]]:
    notes = BadSampleNotes("x")
    paths = sorted(folder.glob("*.tar"))
    samples = list(read_shards([(str(path), "") for path in paths], notes))
    return samples, Counter(notes.take().counts)


def decodes(data: bytes) -> bool:
    try:
        read_header(data)
        decode_rgb(data)
    except BadImage:
        return False
    return True


def content(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_good_samples_keep_their_order_and_bad_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", MAX_MEMBER)
    rng, kinds = random.Random(fresh_seed()), all_kinds()
    order = list(enumerate(kinds.values(), 100))
    rng.shuffle(order)
    (tmp_path / "in").mkdir()
    for part in range(3):
        members = [m for number, kind in order[part::3] for m in kind.members(number)]
        members += [m for n in range(part * 9, part * 9 + 9) for m in sample_members(n)]
        (tmp_path / "in" / f"{part}.tar").write_bytes(tar_bytes(members))
    assert pack(tmp_path / "in", tmp_path / "out", "--samples-per-shard", 7) == 0
    used = 27 + sum(kind.used for kind in kinds.values())
    packed, faults = samples_of(tmp_path / "out")
    assert len(packed) == used
    assert faults.keys() <= {"empty caption (kept)"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dropped"] == Counter(c for kind in kinds.values() for c in kind.causes)
    sizes = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert [*sizes.values()] == [7] * (used // 7) + ([used % 7] if used % 7 else [])
    assert {s["name"]: s["sha256"] for s in manifest["shards"]} == {
        name: digest for name, digest in content(tmp_path / "out").items() if name.endswith(".tar")
    }
    # every sample of the source that has a good picture, and nothing else, in the source's order
    before, _ = samples_of(tmp_path / "in")
    assert [s.caption for s in packed] == [s.caption for s in before if decodes(s.image)]
    assert len({s.key.split("/")[1] for s in packed}) == used


@pytest.mark.parametrize(("size", "shrunk"), [((50, 80), (32, 51)), ((80, 50), (51, 32))])
def test_pictures_are_shrunk_by_their_shorter_edge(size, shrunk):
    picture = smooth(size[1], size[0])
    data, suffix = shrink(encode(picture, "PNG"), 32, 95)
    image = Image.open(io.BytesIO(data))
    assert (suffix, image.format, image.size) == ("jpg", "JPEG", shrunk)
    expected = picture.resize(shrunk, Image.Resampling.BICUBIC)
    expected = Image.open(io.BytesIO(encode(expected, "JPEG", quality=95)))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_small_pictures_are_kept_to_the_byte():
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        data = encode(smooth(30, 40), kind)
        assert shrink(data, 30, 95) == (data, suffix)
        assert shrink(data, None, 95) == (data, suffix)
    gif = encode(smooth(30, 40), "GIF")
    data, suffix = shrink(gif, None, 95)
    assert suffix == "png"
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(data))),
        np.asarray(Image.open(io.BytesIO(gif)).convert("RGB")),
    )
    wide, _ = shrink(png(5000, 3, depth=8, color=2), 1, 95)
    assert Image.open(io.BytesIO(wide)).size == (1667, 1)


def test_a_pack_that_breaks_off_inside_a_shard_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    rng = random.Random(fresh_seed())
    write_shards(tmp_path / "in", [10, 0, 17, 9])
    members = []
    for number in range(12):
        members += [*sample_members(number), (f"b{number}.txt", b"alone")]
        members += [(f"c{number}.jpg", b"junk"), (f"c{number}.txt", b"x")]
    (tmp_path / "in" / "0004.tar").write_bytes(tar_bytes(members))
    options = ["--samples-per-shard", rng.randrange(3, 8)]
    assert pack(tmp_path / "in", tmp_path / "whole", *options) == 0

    def breaking(path, first, samples):
        def some():
            yield from itertools.islice(samples, 1)
            raise KeyboardInterrupt

        return write_shard(path, first, some() if rng.random() < 0.4 else samples)

    cut, broken = tmp_path / "cut", 0
    monkeypatch.setattr("fastclip.curate.pack.write_shard", breaking)
    while (status := pack(tmp_path / "in", cut, *options)) == ExitCode.INTERRUPTED:
        broken += 1
        assert not (cut / "sizes.json").exists()
    assert status == 0
    print(f"broke off {broken} times")
    assert content(cut) == content(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_to_the_same_bytes(tmp_path):
    rng = random.Random(fresh_seed())
    (tmp_path / "in").mkdir()
    for part in range(4):
        members = []
        for number in range(part * 150, part * 150 + 150):
            members += sample_members(number)
            if rng.random() < 0.1:
                members += [(f"b{number}.jpg", jpeg(number)[:-30]), (f"b{number}.txt", b"bad")]
            if rng.random() < 0.1:
                members.append((f"c{number}.jpg", jpeg(number)))
        (tmp_path / "in" / f"{part}.tar").write_bytes(tar_bytes(members))
    options = ["--samples-per-shard", "23", "--resize", "16", "--processes", "2"]
    words = [sys.executable, "-m", "fastclip", "data", "pack", str(tmp_path / "in"), *options]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*words, "--out", str(whole)], check=True, timeout=120)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen([*words, "--out", str(cut)], start_new_session=True)
        wanted = len(list(cut.glob("*.tar"))) + rng.randrange(1, 9)
        while process.poll() is None and len(list(cut.glob("*.tar"))) < wanted:
            time.sleep(0.002)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        deadline = time.monotonic() + 30
        while not all_gone(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert all_gone(process.pid)  # nothing goes on writing
        packed = [name for name in content(cut) if name.endswith(".tar")]
        assert all(content(cut)[name] == content(whole)[name] for name in packed)
    assert kills >= 2
    assert content(cut) == content(whole)
    assert pack(tmp_path / "in", cut, *options[:4]) == 0  # nothing left to do
    assert content(cut) == content(whole)


def test_another_command_does_not_mix_into_a_pack(tmp_path, capsys):
    write_shards(tmp_path / "in", [5])
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    before = content(tmp_path / "out")
    assert pack(tmp_path / "in", tmp_path / "out", "--resize", 9) == ExitCode.USAGE
    assert "was begun with resize null, now it is 9" in capsys.readouterr().err
    assert pack(tmp_path / "in", tmp_path / "in") == ExitCode.USAGE
    assert content(tmp_path / "out") == before


def test_nothing_usable_is_65(tmp_path, capsys):
    (tmp_path / "0.tar").write_bytes(tar_bytes([("a.jpg", b"junk"), ("a.txt", b"x")]))
    assert pack(tmp_path, tmp_path / "out") == ExitCode.DATA_UNUSABLE
    assert f"not one usable sample ({BAD_PICTURE}: 1)" in capsys.readouterr().err
