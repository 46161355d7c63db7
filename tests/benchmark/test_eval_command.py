"""`fastclip eval` on one data set: figures, layouts, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastclip
from fastclip.cli.main import main
from tests.benchmark import by_hand, miniature
from tests.benchmark.miniature import NOUNS, Mini
from tests.benchmark.tiny_hub import Reference


def run(hub: Path, task: str, data: Path, out: Path, *more: str) -> dict[str, Any]:
    argv = ["eval", "--checkpoint", str(hub), "--task", task, "--data", str(data)]
    assert main([*argv, "--out", str(out), "--workers", "0", *more]) == 0
    return json.loads(out.read_text())


def by_reference(reference: Reference, mini: Mini) -> dict[str, Any]:
    classifier = reference.classifier(mini.names, mini.templates)
    tops = by_hand.top_classes(reference.images(mini.images), classifier)
    return by_hand.classification(tops, mini.labels)


def test_zero_shot_on_webdataset(hub, reference, rng, tmp_path):
    mini = miniature.labelled(tmp_path / "birds", rng, count=31)
    result = run(hub, "zeroshot", tmp_path / "birds", tmp_path / "r.json")
    assert result["metrics"] == pytest.approx(by_reference(reference, mini), abs=1e-9)
    assert list(result)[:6] == ["dataset", "model", "pretrained", "task", "metrics", "language"]
    assert (result["dataset"], result["task"]) == ("birds", "zeroshot_classification")
    assert "| acc1 " in (tmp_path / "r.md").read_text()
    assert not (tmp_path / "r.json.parts").exists()


def test_fewer_than_five_classes_have_no_top_five(hub, reference, rng, tmp_path):
    mini = miniature.labelled(tmp_path / "few", rng, classes=4)
    result = run(hub, "zeroshot", tmp_path / "few", tmp_path / "r.json")
    assert result["metrics"] == pytest.approx(by_reference(reference, mini), abs=1e-9)
    assert result["metrics"]["acc5"] is None


def class_folders(root: Path, mini: Mini, names: list[str]) -> Path:
    for number, (image, label) in enumerate(zip(mini.images, mini.labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(miniature.encoded(image))
    return root


def test_zero_shot_on_class_folders_and_csv(hub, reference, rng, tmp_path):
    mini = miniature.labelled(tmp_path / "birds", rng, count=40)
    mini.names = sorted(f"red {name}" for name in mini.names)
    mini.templates = ["a photo of a {c}."]
    expected = by_reference(reference, mini)
    folder = class_folders(tmp_path / "folders", mini, [n.replace(" ", "_") for n in mini.names])
    found = run(hub, "zeroshot", folder, tmp_path / "a.json")
    assert found["metrics"] == pytest.approx(expected, abs=1e-9)

    table = tmp_path / "birds.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class"])
        for path in sorted(folder.glob("*/*.png"), key=lambda path: path.name):
            rows.writerow([path, path.parent.name.replace("_", " ")])
    keys = ["--csv-separator", ",", "--csv-img-key", "file", "--csv-caption-key", "class"]
    found = run(hub, "zeroshot", table, tmp_path / "b.json", *keys)
    assert found["metrics"] == pytest.approx(expected, abs=1e-9)


def recalls(reference: Reference, mini: Mini) -> dict[str, float]:
    images = reference.images(mini.images)
    captions = [list(reference.texts(some)) for some in mini.captions]
    metrics = {}
    for k in (1, 5, 10):
        of_text, of_image = by_hand.recalls(images, captions, k)
        metrics[f"image_retrieval_recall@{k}"] = of_text
        metrics[f"text_retrieval_recall@{k}"] = of_image
    return metrics


def test_retrieval_in_every_layout(hub, reference, rng, tmp_path):
    mini = miniature.captioned(tmp_path / "views", rng, count=21)
    expected = pytest.approx(recalls(reference, mini), abs=1e-9)
    found = run(hub, "retrieval", tmp_path / "views", tmp_path / "wds.json")
    assert found["metrics"] == expected

    pictures = tmp_path / "val2014"
    pictures.mkdir()
    for number, image in enumerate(mini.images):
        (pictures / f"{number}.png").write_bytes(miniature.encoded(image))
    coco = {
        "images": [{"id": 70 - n, "file_name": f"{n}.png"} for n in range(21)],
        "annotations": [
            {"image_id": 70 - n, "caption": text}
            for n, some in enumerate(mini.captions)
            for text in some
        ],
    }
    karpathy = {
        "images": [
            {
                "filename": f"{n}.png",
                "filepath": "val2014",
                "split": "test",
                "sentences": [{"raw": text} for text in some],
            }
            for n, some in enumerate(mini.captions)
        ]
        + [{"filename": "x.png", "split": "train", "sentences": [{"raw": "no"}]}]
    }
    listed = [
        {"image": f"val2014/{n}.png", "caption": some} for n, some in enumerate(mini.captions)
    ]
    for name, content in (("coco", coco), ("karpathy", karpathy), ("list", listed)):
        file = miniature.save_json(tmp_path / f"{name}.annotations", content)
        found = run(
            hub, "retrieval", pictures, tmp_path / f"{name}.json", "--annotations", str(file)
        )
        assert found["metrics"] == expected, name

    table = tmp_path / "views.tsv"
    lines = [
        f"{pictures / f'{n}.png'}\t{text}" for n, some in enumerate(mini.captions) for text in some
    ]
    table.write_text("\n".join(["filepath\ttitle", *lines]) + "\n")
    assert run(hub, "retrieval", table, tmp_path / "csv.json")["metrics"] == expected


def test_retrieval_on_the_shards_of_training(hub, reference, rng, tmp_path, monkeypatch):
    """One caption a sample, all lines of it; what the trainer leaves out is left out and counted."""
    mini = miniature.captioned(tmp_path / "views", rng, count=21)
    samples = [
        {"png": miniature.encoded(image), "txt": "\n".join(some).encode()}
        for image, some in zip(mini.images, mini.captions, strict=True)
    ]
    del samples[2]["txt"], samples[5]["png"]
    samples[17]["txt"] = b"\xff"
    samples[20]["png"] = b"no picture"
    miniature.write_shards(tmp_path, "shards", samples)
    keep = [n for n in range(21) if n not in (2, 5, 17, 20)]
    mini.images = [mini.images[n] for n in keep]
    mini.captions = [["\n".join(mini.captions[n])] for n in keep]
    expected = pytest.approx(recalls(reference, mini), abs=1e-9)
    monkeypatch.chdir(tmp_path)
    Path("one").mkdir()
    Path("one/0.tar").symlink_to(tmp_path / "shards/0.tar")
    Path("list.txt").write_text("shards/0.tar\nshards/1.tar\n")
    for number, spec in enumerate(
        ["shards/{0..1}.tar", "shards", "shards/*.tar", "one/0.tar::shards/1.tar", "list.txt"]
    ):
        found = run(hub, "retrieval", Path(spec), tmp_path / f"{number}.json")
        assert found["metrics"] == expected, spec
        assert found["num_samples"] == 17
        assert found["bad_samples"] == {
            "caption is not UTF-8": 1,
            "no caption": 1,
            "no picture": 1,
            "unreadable picture": 1,
        }
    assert found["dataset"] == "list.txt"
    half = run(hub, "retrieval", Path("shards/0.tar"), tmp_path / "half.json")
    assert (half["dataset"], half["num_samples"]) == ("0", 9)


def test_checkpoint_of_ours_and_of_the_reference(hub, rng, tmp_path):
    miniature.labelled(tmp_path / "birds", rng)
    expected = run(hub, "zeroshot", tmp_path / "birds", tmp_path / "hub.json")
    state = fastclip.create_model(f"local-dir:{hub}").state_dict()
    ours, theirs = tmp_path / "epoch_1.pt", tmp_path / "theirs.pt"
    torch.save({"epoch": 1, "name": "x", "state_dict": state}, ours)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, theirs)
    config = tmp_path / "config"
    config.mkdir()
    (config / "open_clip_config.json").write_text((hub / "open_clip_config.json").read_text())
    for file in (ours, theirs):
        out = tmp_path / f"{file.stem}.json"
        found = run(file, "zeroshot", tmp_path / "birds", out, "--model", f"local-dir:{config}")
        assert found["metrics"] == expected["metrics"]
        assert found["fingerprint"] == expected["fingerprint"]  # of the weights, not of the file


PALETTE = [[20, 20, 20], [230, 30, 30], [30, 230, 30], [30, 30, 230], [230, 230, 230]]


def test_linear_probe_learns_what_is_there_to_learn(hub, rng, tmp_path):
    """Classes are colours: nearly all of the held-out pictures come out right; with labels at random
    no more than chance would have it."""
    for kind, chance in (("colours", False), ("random", True)):
        folder = tmp_path / kind
        for split, count in (("train", 640), ("test", 120)):
            samples = []
            for _ in range(count):
                label = int(rng.integers(5))
                shown = int(rng.integers(5)) if chance else label
                colour = np.zeros((40, 40, 3)) + PALETTE[shown]
                noisy = np.clip(colour + rng.integers(-20, 20, colour.shape), 0, 255)
                image = miniature.Image.fromarray(noisy.astype(np.uint8))
                samples.append({"png": miniature.encoded(image), "cls": str(label).encode()})
            miniature.write_shards(folder, split, samples)
        (folder / "classnames.txt").write_text("\n".join(NOUNS[:5]))
        (folder / "zeroshot_classification_templates.txt").write_text("{c}")
        metrics = run(hub, "linear-probe", folder, tmp_path / f"{kind}.json")["metrics"]
        assert metrics["lp_acc1"] < 0.45 if chance else metrics["lp_acc1"] > 0.9
        assert metrics["lp_mean_per_class_recall"] == pytest.approx(metrics["lp_acc1"], abs=0.1)


def test_pictures_that_do_not_decode_are_counted(hub, reference, rng, tmp_path, caplog):
    mini = miniature.labelled(tmp_path / "birds", rng, count=20)
    samples = [
        {"png": miniature.encoded(image), "cls": str(label).encode()}
        for image, label in zip(mini.images, mini.labels, strict=True)
    ]
    for number in (4, 19):
        samples[number]["png"] = samples[number]["png"][:60]
    miniature.write_shards(tmp_path / "birds", "test", samples)
    result = run(hub, "zeroshot", tmp_path / "birds", tmp_path / "r.json")
    keep = [n for n in range(20) if n not in (4, 19)]
    mini.images, mini.labels = [mini.images[n] for n in keep], [mini.labels[n] for n in keep]
    assert result["metrics"] == pytest.approx(by_reference(reference, mini), abs=1e-9)
    assert (result["num_samples"], result["bad_samples"]) == (18, {"unreadable picture": 2})
    assert "2 left out" in (tmp_path / "r.md").read_text()


CHILD = """
import sys, time
from fastclip.benchmark import features
from fastclip.cli.main import main
features.PART_PICTURES = 64
add = features.Parts.add
def slowly(self, numbers, rows):
    add(self, numbers, rows)
    print(len(numbers), flush=True)
    time.sleep(float(sys.argv[1]))
features.Parts.add = slowly
sys.exit(main(sys.argv[2:]))
"""


def test_killed_and_started_again(hub, rng, tmp_path):
    """Parts that were finished are not done again, and the result is that of an undisturbed run."""
    data, out = tmp_path / "birds", tmp_path / "r.json"
    miniature.labelled(data, rng, count=320)
    flags = ["eval", "--checkpoint", str(hub), "--task", "zeroshot", "--data", str(data)]
    flags += ["--workers", "0", "--batch-size", "32"]
    command = [sys.executable, "-c", CHILD]
    killed = subprocess.Popen(
        [*command, "60", *flags, "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "64\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not out.exists()

    again = subprocess.run(
        [*command, "0", *flags, "--out", str(out)], capture_output=True, text=True, check=True
    )
    parts = [int(line) for line in again.stdout.splitlines() if line.isdecimal()]
    assert sum(parts) == 320 - 64
    undisturbed = run(hub, "zeroshot", data, tmp_path / "whole.json")
    assert json.loads(out.read_text()) == undisturbed
    assert not (tmp_path / "r.json.parts").exists()


def test_a_result_is_shown_again_and_never_overwritten(hub, rng, tmp_path, capsys):
    miniature.labelled(tmp_path / "birds", rng)
    miniature.labelled(tmp_path / "fish", rng)
    out = tmp_path / "r.json"
    first = run(hub, "zeroshot", tmp_path / "birds", out)
    written = out.stat().st_mtime_ns
    assert run(hub, "zeroshot", tmp_path / "birds", out) == first
    assert out.stat().st_mtime_ns == written
    argv = ["eval", "--checkpoint", str(hub), "--task", "zeroshot", "--out", str(out)]
    assert main([*argv, "--data", str(tmp_path / "fish"), "--workers", "0"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert json.loads(out.read_text()) == first


def test_a_damaged_part_is_done_again(hub, rng, tmp_path):
    from fastclip.benchmark.features import Parts

    parts = Parts(tmp_path)
    parts.add(torch.arange(3), torch.ones(3, 2))
    parts.add(torch.arange(3, 6), torch.ones(3, 2))
    second = tmp_path / "part-0-000000003.safetensors"
    second.write_bytes(second.read_bytes()[:-3])
    assert [numbers.tolist() for numbers, _ in Parts(tmp_path).read()] == [[0, 1, 2]]
    assert not second.exists()
