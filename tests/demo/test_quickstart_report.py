"""The quickstart's report shows the numbers of the run, and a model folder that opens."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastclip
from fastclip.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIG = f"local-dir:{Path(fastclip.__file__).parent / 'demo/model'}"
LINE = (
    "2026-01-01,00:00:00 | INFO | Train Epoch: {epoch} [{seen:>4}/1536 (4%)] Data (t): 0.644 "
    "Batch (t): 1.733, 36.9372/s, 36.9372/s/gpu LR: 0.000020 Logit Scale: 14.286 "
    "Contrastive_loss: 9.9999 (8.8888) Loss: {loss:#.5g} (7.7777) Wait: 37.2% Grad Norm: 11.67"
)


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location(
        "quickstart_report", ROOT / "scripts/quickstart_report.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "logs/demo"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(f"batch_size: 64\nworkers: 2\nmodel: {CONFIG}\n")
    lines = [LINE.format(epoch=e, seen=s, loss=4 - e) for e in range(2) for s in (64, 1536)]
    (folder / "out.log").write_text("\n".join(["Start epoch 0", *lines]) + "\n")
    recalls = {f"{way}_R@{k}": 0.25 for way in ("image_to_text", "text_to_image") for k in (1, 10)}
    results = [
        {
            **recalls,
            "text_to_image_R@5": 0.1 * epoch,
            "image_to_text_R@5": 0.05 * epoch,
            "epoch": epoch,
            "num_samples": 240,
        }
        for epoch in (1, 2)
    ]
    text = "".join(json.dumps(result) + "\n" for result in results)
    (folder / "checkpoints/results.jsonl").write_text(text)
    model = fastclip.create_model(CONFIG)
    torch.save({"epoch": 2, "state_dict": model.state_dict()}, folder / "checkpoints/epoch_2.pt")
    return folder, model


@pytest.mark.parametrize(
    ("apart", "verdict"), [(0.0, "They are the same."), (0.05, "They differ by up to 0.0500.")]
)
def test_pages_show_the_run(report, run, tmp_path, monkeypatch, capsys, apart, verdict):
    folder, model = run
    out = tmp_path / "out"
    export = ["export", "--run", str(folder), "--to", "open_clip", "--out", str(out / "model")]
    assert main(export) == 0
    assert "open_clip opens it" in capsys.readouterr().out
    metrics = {
        "image_retrieval_recall@1": 0.25,
        "image_retrieval_recall@5": 0.2,
        "image_retrieval_recall@10": 0.25,
        "text_retrieval_recall@1": 0.25,
        "text_retrieval_recall@5": 0.1 - apart,
        "text_retrieval_recall@10": 0.25,
    }
    (out / "retrieval.json").write_text(json.dumps({"metrics": metrics}))
    argv = ["report", str(folder), str(out), "--command", "fastclip train --aug-cfg <a&b>"]
    monkeypatch.setattr("sys.argv", argv)
    report.main()

    chance = 5 / 240
    said = capsys.readouterr().out
    page = (out / "index.html").read_text()
    for text in (said, page):
        assert "20.0% caption to picture" in text
        assert f"{0.2 / chance:.1f}x chance" in text
        assert "10.0% picture to caption" in text
        assert f"{chance:.1%}" in text
    assert "--aug-cfg &lt;a&amp;b&gt;" in page
    assert verdict in page
    shown = f"<td>text_retrieval_recall@5</td><td>{0.1 - apart:.4f}</td><td>0.1000</td>"
    assert shown in page
    for name in ("loss_curve.png", "retrieval.png"):
        assert f'src="{name}"' in page
        assert min(Image.open(out / name).size) > 300

    loaded, _, _ = fastclip.create_model_and_transforms(f"local-dir:{out / 'model'}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_points_of_the_loss_curve_come_from_the_log(report, run):
    points = report.read_train_points(report.read(run[0] / "out.log"))
    assert [point.loss for point in points] == [4, 4, 3, 3]
    assert [point.epoch for point in points] == pytest.approx([64 / 1536, 1, 1 + 64 / 1536, 2])


def test_chance_is_what_random_features_get(report):
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    scores = torch.randn(4000, 50, generator=generator)
    hits = (scores.topk(5).indices == 7).any(dim=1).double().mean().item()
    chance = report.chance_at(5, {"num_samples": 50})
    assert abs(hits - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000)
