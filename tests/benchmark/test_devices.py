"""`fastclip eval --device cpu,cpu`: two processes give the figures of one, and are killed without harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastclip.benchmark import features, model
from fastclip.benchmark.devices import devices_of, other_devices
from fastclip.benchmark.features import Share
from fastclip.benchmark.suite_sets import datacomp_sets
from fastclip.cli.main import main
from fastclip.config.eval_options import EvalOptions
from fastclip.data.tar_index import Place
from fastclip.errors import CannotWrite
from tests.benchmark import miniature
from tests.live_processes import live_processes

# `fastclip eval` with small parts; each process waits for argv[1] seconds after each of its own. It does so in short
# pieces: Linux may hand a signal that came while a process was stopped to any of its threads, and then Python's
# handler runs only when the main thread comes back from what it calls.
CHILD = """
import sys, time
from fastclip.benchmark import features
from fastclip.cli.main import main
features.PART_PICTURES = 64
add = features.Parts.add
def slowly(self, numbers, rows):
    add(self, numbers, rows)
    print("part", flush=True)
    for _ in range(20 * int(sys.argv[1])):
        time.sleep(0.05)
features.Parts.add = slowly
features.Parts.remove = lambda self: None
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


def flags(hub: Path, data: Path, out: Path, device: str, task: str = "zeroshot") -> list[str]:
    words = ["eval", "--checkpoint", str(hub), "--task", task, "--data", str(data)]
    return [*words, "--out", str(out), "--device", device, "--workers", "0", "--batch-size", "32"]


def evaluated(words: list[str]) -> dict[str, Any]:
    assert main(words) == 0
    return json.loads(Path(words[words.index("--out") + 1]).read_text())


def kept_parts(out: Path) -> dict[Path, tuple[int, tuple[int, ...]]]:
    """Parts beside `out`: when each was written, and of which pictures it is."""
    return {
        path: (path.stat().st_mtime_ns, tuple(load_file(path)["numbers"].tolist()))
        for path in Path(f"{out}.parts").rglob("part-*.safetensors")
    }


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def encoding_process(of: int) -> int:
    """The process that encodes on the second device for the main one `of`."""
    [found] = [
        child
        for child in live_processes("parent", of)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found


def test_same_figures_on_two_and_three(hub, rng, tmp_path, monkeypatch):
    """With pictures that do not decode on each of them, and parts that do not come out even."""
    monkeypatch.setattr(features, "PART_PICTURES", 64)
    monkeypatch.setattr(features.Parts, "remove", lambda self: None)
    mini = miniature.labelled(tmp_path / "birds", rng, count=301)
    samples = [
        {"png": miniature.encoded(image), "cls": str(label).encode()}
        for image, label in zip(mini.images, mini.labels, strict=True)
    ]
    for number in (5, 70, 71, 140, 300):
        samples[number]["png"] = b"no picture"
    miniature.write_shards(tmp_path / "birds", "test", samples)
    one = evaluated(flags(hub, tmp_path / "birds", tmp_path / "1.json", "cpu"))
    assert one["bad_samples"] == {"unreadable picture": 5}
    for device in ("cpu,cpu", "cpu,cpu,cpu"):
        out = tmp_path / f"{device.count('cpu')}.json"
        assert evaluated(flags(hub, tmp_path / "birds", out, device)) == one
        parts = kept_parts(out)
        assert {path.name[:6] for path in parts} == {
            f"part-{number}" for number in range(device.count("cpu"))
        }
        numbers = sorted(number for _, some in parts.values() for number in some)
        assert numbers == [n for n in range(301) if n not in (5, 70, 71, 140, 300)]


def test_every_task_and_little_data(hub, rng, tmp_path):
    """One part for two devices; and all of a device's pictures do not decode."""
    miniature.captioned(tmp_path / "views", rng, count=11)
    for device in ("cpu", "cpu,cpu"):
        found = evaluated(
            flags(hub, tmp_path / "views", tmp_path / f"{device}.json", device, "retrieval")
        )
        if device == "cpu":
            expected = found
    assert found == expected

    mini = miniature.labelled(tmp_path / "birds", rng, count=64)
    samples = [{"png": b"x", "cls": str(label).encode()} for label in mini.labels]
    for number in range(32):
        samples[number]["png"] = miniature.encoded(mini.images[number])
    miniature.write_shards(tmp_path / "birds", "test", samples)
    half = evaluated(flags(hub, tmp_path / "birds", tmp_path / "half.json", "cpu,cpu"))
    assert (half["num_samples"], half["bad_samples"]) == (32, {"unreadable picture": 32})


def test_killed_and_started_again(hub, rng, tmp_path):
    """The other process ends too, nothing that either finished is done again, and the result is the same."""
    data, out = tmp_path / "birds", tmp_path / "r.json"
    miniature.labelled(data, rng, count=1280)
    words = flags(hub, data, out, "cpu,cpu")
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    killed = subprocess.Popen(
        [sys.executable, script, "60", *words], stdout=subprocess.PIPE, start_new_session=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"part\n"
    other = encoding_process(killed.pid)
    wait_until(lambda: any(Path(f"{out}.parts").rglob("part-1-*.safetensors")))
    os.kill(other, signal.SIGSTOP)  # in the middle of its share
    before = kept_parts(out)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    os.kill(other, signal.SIGCONT)
    wait_until(lambda: not live_processes("session", killed.pid))
    assert kept_parts(out) == before  # it ended at once
    assert not out.exists()
    assert {path.name[:6] for path in before} == {"part-0", "part-1"}
    assert sum(len(numbers) for _, numbers in before.values()) <= 1280 - 128

    subprocess.run([sys.executable, script, "0", *words], check=True, capture_output=True)
    after = kept_parts(out)
    assert before.items() <= after.items()
    assert sorted(n for _, numbers in after.values() for n in numbers) == list(range(1280))
    whole = evaluated(flags(hub, data, tmp_path / "whole.json", "cpu"))
    assert json.loads(out.read_text()) == whole


def test_another_process_that_dies_is_told(hub, rng, tmp_path):
    data, out = tmp_path / "birds", tmp_path / "r.json"
    miniature.labelled(data, rng, count=320)
    words = flags(hub, data, out, "cpu,cpu")
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    running = subprocess.Popen(
        [sys.executable, script, "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "part\n"
    os.kill(encoding_process(running.pid), signal.SIGKILL)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 69
    [line] = [line for line in error.splitlines() if "error:" in line]
    assert "the process on device cpu ended (signal 9)" in line
    assert not out.exists()
    whole = evaluated(flags(hub, data, tmp_path / "whole.json", "cpu"))
    assert evaluated(words) == whole


def test_an_error_there_is_told_here(hub, rng, tmp_path):
    """A share that fails there; and the next one is not answered by what nobody asked for."""
    mini = miniature.labelled(tmp_path / "birds", rng, count=8)
    places = [Place(str(tmp_path / f"{number}.png")) for number in range(8)]
    for place, image in zip(places, mini.images, strict=True):
        image.save(place.path)
    (tmp_path / "file").touch()
    common = {"name": "birds", "places": places, "device": 1, "part_pictures": 4}
    common |= {"batch_size": 4, "workers": 0}
    options = EvalOptions(checkpoint=str(hub), task="zeroshot", data="x", precision="fp32")
    with other_devices(options, ["cpu"]) as [other]:
        refused = Share(numbers=range(4), folder=tmp_path / "file/parts", **common)
        other.start(refused)
        with pytest.raises(CannotWrite, match="file/parts"):
            other.result()
        other.start(refused)  # its result is not asked for
        other.start(Share(numbers=range(4, 8), folder=tmp_path / "parts", **common))
        assert other.result() == {}
    assert load_file(tmp_path / "parts/part-1-000000004.safetensors")["numbers"].tolist() == [
        *range(4, 8)
    ]


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        (None, 0, ["cpu"]),
        (None, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 3, ["cuda"]),
        ("cuda:2,cuda:0", 3, ["cuda:2", "cuda:0"]),
        ("cpu,cpu", 3, ["cpu", "cpu"]),
    ],
)
def test_devices(device, gpus, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices_of(EvalOptions(checkpoint="c", task="zeroshot", data="x", device=device)) == (
        expected
    )


@pytest.mark.parametrize(("device", "current"), [("cuda", []), ("cuda:1", [1]), ("cpu", [])])
def test_kernels_run_where_the_model_is(device, current, monkeypatch):
    """Triton launches on the current device, whatever its tensors are on."""

    class Stop(Exception):
        pass

    def stop(*args: Any, **given: Any) -> None:
        raise Stop

    made = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", made.append, raising=False)
    monkeypatch.setattr(model, "create_model", stop)
    with pytest.raises(Stop):
        model.load_subject(
            EvalOptions(model="local-dir:m", task="zeroshot", data="x", device=device)
        )
    assert made == current


def test_suite(hub, rng, tmp_path, capsys):
    """The processes stay for all sets; one that cannot be used does not disturb the next."""
    sets = [of for of in datacomp_sets() if of.task == "zeroshot"][:3]
    for of in sets:
        miniature.labelled(tmp_path / "evalsets" / of.folder, rng, count=80)
    bad = [{"png": b"x", "cls": b"0"}] * 80
    miniature.write_shards(tmp_path / "evalsets" / sets[1].folder, "test", bad)
    found = []
    for device in ("cpu", "cpu,cpu"):
        out = tmp_path / device
        words = ["eval", "--suite", "datacomp", "--data-root", str(tmp_path / "evalsets")]
        words += ["--checkpoint", str(hub), "--out", str(out), "--device", device, "--workers", "0"]
        assert main([*words, "--batch-size", "16"]) == 65
        assert "unreadable picture: 80" in capsys.readouterr().err
        assert not (out / f"{sets[1].slug}.json").exists()
        found.append([(out / f"{of.slug}.json").read_text() for of in (sets[0], sets[2])])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("device", "status", "said"),
    [
        ("gpu", 2, "--device 'gpu': cpu, cuda, cuda with a number, or several with commas"),
        ("cpu,", 2, "--device 'cpu,'"),
        ("cpu,cuda:0", 2, "must be of one kind"),
        ("cuda:7", 69, "--device cuda:7: torch finds"),
    ],
)
def test_devices_that_are_none(device, status, said, hub, rng, tmp_path, capsys):
    miniature.labelled(tmp_path / "birds", rng, count=3)
    assert main(flags(hub, tmp_path / "birds", tmp_path / "r.json", device)) == status
    assert said in capsys.readouterr().err
