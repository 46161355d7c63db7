"""Features on disk are those of one big batch, and work that was done is not done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import fastclip
from fastclip.errors import CannotWrite, DataError, InputMissing
from tests.export.exported import config, pictures, reference_model


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(random.randrange(2**32))
    reference = reference_model(tmp_path / "model", config(), {})
    torch.save(reference.state_dict(), tmp_path / "model/open_clip_pytorch_model.bin")
    return fastclip.create_model(f"local-dir:{tmp_path / 'model'}").eval()


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(random.randrange(2**32))
    made = [picture for _ in range(4) for picture in pictures(rng)][:11]
    for i, picture in enumerate(made):
        picture.save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(len(made))]


@torch.no_grad()
def directly(model, paths) -> torch.Tensor:
    transform = fastclip.api.EvalTransform(model.visual.preprocess_cfg)
    return F.normalize(
        model.encode_image(torch.stack([transform(Image.open(p)) for p in paths])), dim=-1
    )


def test_pictures_in_their_order(model, paths, tmp_path):
    done = fastclip.encode_to_disk(
        iter(paths), tmp_path / "out", model=model, batch_size=3, shard_size=4
    )
    assert done == (11, [], 3)
    found = fastclip.read_features(tmp_path / "out")
    assert (found - directly(model, paths)).abs().max() <= 1e-5
    loaded = [Image.open(path) for path in paths]
    fastclip.encode_to_disk(loaded, tmp_path / "pil", model=model)
    assert (fastclip.read_features(tmp_path / "pil") - found).abs().max() <= 1e-5


def test_texts(model, tmp_path):
    texts = [f"text {i} {'word ' * i}" for i in range(7)]
    tokenizer = fastclip.get_tokenizer(context_length=19)
    fastclip.encode_to_disk(
        texts, tmp_path / "out", model=model, tokenizer=tokenizer, batch_size=2, shard_size=5
    )
    with torch.no_grad():
        expected = model.encode_text(tokenizer(texts), normalize=True)
    assert (fastclip.read_features(tmp_path / "out") - expected).abs().max() <= 1e-5


def test_a_stopped_run_goes_on(model, paths, tmp_path):
    """Stopped in the middle of the second shard, by an exception of the caller's own iterable."""

    class Stop(Exception):
        pass

    def until(limit):
        for i, path in enumerate(paths):
            if i == limit:
                raise Stop
            yield path

    options = {"model": model, "batch_size": 2, "shard_size": 4}
    with pytest.raises(Stop):
        fastclip.encode_to_disk(until(7), tmp_path / "out", **options)
    [first] = (tmp_path / "out").iterdir()
    before = first.stat().st_mtime_ns
    assert fastclip.encode_to_disk(paths, tmp_path / "out", **options) == (11, [], 2)
    assert first.stat().st_mtime_ns == before
    found = fastclip.read_features(tmp_path / "out")
    assert (found - directly(model, paths)).abs().max() <= 1e-5
    assert fastclip.encode_to_disk(paths, tmp_path / "out", **options) == (11, [], 0)


# Stops for good in the middle of the second shard, or when that is written and has not got its name.
CHILD = """
import sys, time
from pathlib import Path
import fastclip
where, model, out, *paths = sys.argv[1:]
def stop():
    print("stopped", flush=True)
    time.sleep(600)
def items():
    for number, path in enumerate(paths):
        if where == "inside" and number == 7:
            stop()
        yield path
replace = Path.replace
def named(self, to):
    if where == "unnamed" and to.stem.endswith("1"):
        stop()
    return replace(self, to)
Path.replace = named
fastclip.encode_to_disk(
    items(), out, model=fastclip.create_model(f"local-dir:{model}").eval(), batch_size=2, shard_size=4
)
"""


@pytest.mark.parametrize("where", ["inside", "unnamed"])
def test_killed_and_started_again(model, paths, tmp_path, where):
    """By SIGKILL: the shard that was finished is not made again, and the features are those of one big batch."""
    out = tmp_path / "out"
    words = [sys.executable, "-c", CHILD, where, tmp_path / "model", out, *paths]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"stopped\n"
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    first = out / "features-00000.safetensors"
    left = [first] if where == "inside" else [first, out / "features-00001.partial"]
    assert sorted(out.iterdir()) == left
    before = first.stat().st_mtime_ns
    options = {"model": model, "batch_size": 2, "shard_size": 4}
    assert fastclip.encode_to_disk(paths, out, **options) == (11, [], 2)
    assert first.stat().st_mtime_ns == before
    assert {path.suffix for path in out.iterdir()} == {".safetensors"}
    found = fastclip.read_features(out)
    assert (found - directly(model, paths)).abs().max() <= 1e-5


def test_pictures_that_cannot_be_read(model, paths, tmp_path, caplog):
    paths[1].write_bytes(b"no picture")
    paths[6].unlink()
    options = {"model": model, "batch_size": 2, "shard_size": 4}
    done = fastclip.encode_to_disk(paths, tmp_path / "out", **options)
    assert done == (11, [1, 6], 3)
    assert "2 of 11" in caplog.text
    found = fastclip.read_features(tmp_path / "out")
    assert found.isnan().all(dim=1).nonzero()[:, 0].tolist() == [1, 6]
    good = [0, 2, 3, 4, 5, 7, 8, 9, 10]
    expected = directly(model, [paths[i] for i in good])
    assert (found[good] - expected).abs().max() <= 1e-5
    assert fastclip.encode_to_disk(paths, tmp_path / "out", **options) == (11, [1, 6], 0)


def test_what_does_not_belong_together(model, paths, tmp_path):
    out = tmp_path / "out"
    fastclip.encode_to_disk(paths, out, model=model, shard_size=4)
    with pytest.raises(DataError, match="other items"):
        fastclip.encode_to_disk(paths[1:], out, model=model, shard_size=4)
    with pytest.raises(DataError, match="other items"):
        fastclip.encode_to_disk(paths, out, model=model, shard_size=5)
    with torch.no_grad():
        model.visual.proj.mul_(torch.randn_like(model.visual.proj))
    with pytest.raises(DataError, match="another model"):
        fastclip.encode_to_disk(paths, out, model=model, shard_size=4)
    (out / "features-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="00001"):
        fastclip.read_features(out)


def test_nowhere(model, paths, tmp_path):
    with pytest.raises(InputMissing):
        fastclip.read_features(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite):
        fastclip.encode_to_disk(paths, tmp_path / "file", model=model)
