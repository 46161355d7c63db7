"""The card holds the run's own figures, marks what nobody recorded, and gives no secret away."""

from __future__ import annotations

import json
import re

import pytest
import torch

from fastclip.export.model_card import BLANK, redacted
from tests.export.exported import config, export, reference_model

STEP = (
    "2026-01-01,00:00:0{epoch} | INFO | Train Epoch: {epoch} [{samples:>4}/2000 (50%)] Data (t): 0.6 "
    "Batch (t): 1.733, {rate:#g}/s, {rate:#g}/s/gpu LR: 0.000020 Logit Scale: 14.286 "
    "Contrastive_loss: 9.9999 (8.8888) Loss: {loss:#.5g} (7.7777) Wait: 37.2% Grad Norm: 11.67"
)
SOFTWARE = "Software: fastclip 0.1.0, torch 2.14.1, Python 3.11.4. Hardware: 8 x Some GPU"


@pytest.fixture
def run(tmp_path):
    """Three epochs of 2,000 samples, the checkpoint of the second beside that of the third."""
    trained = reference_model(tmp_path / "model", config(), {})
    folder = tmp_path / "logs/demo"
    (folder / "checkpoints").mkdir(parents=True)
    flags = {
        "model": f"local-dir:{tmp_path / 'model'}",
        "train_data": "pipe:curl https://me:pw@host/{0..9}.tar?token=abc",
        "batch_size": 64,
        "accum_freq": 2,
        "world_size": 8,
        "epochs": 3,
        "lr": 0.00123,
        "precision": "amp_bf16",
        "siglip": False,
        "logs": "/home/me/logs",
        "force_image_size": None,
    }
    (folder / "params.txt").write_text("".join(f"{k}: {v}\n" for k, v in flags.items()))
    rates = iter([10, 500, 510, 520, 530, 540])
    steps = [
        STEP.format(epoch=epoch, samples=samples, rate=next(rates), loss=3 - epoch - samples / 1e4)
        for epoch in range(3)
        for samples in (1000, 2000)
    ]
    start = f"2026-01-01,00:00:00 | INFO | {SOFTWARE}"
    (folder / "out.log").write_text("\n".join([start, *steps]) + "\n")
    results = [{"image_to_text_R@1": 0.1 * e, "epoch": e, "num_samples": 77} for e in (1, 2, 3)]
    lines = [json.dumps(result) + "\n" for result in results]
    (folder / "checkpoints/results.jsonl").write_text("".join([*lines, '{"half']))
    for epoch in (2, 3):
        path = folder / f"checkpoints/epoch_{epoch}.pt"
        torch.save({"epoch": epoch, "state_dict": trained.state_dict()}, path)
    return folder


def card(run, tmp_path, *words) -> str:
    words = ("--run", run, "--to", "open_clip", "--out", tmp_path / "out", *words)
    assert export(*words) == 0
    return (tmp_path / "out/README.md").read_text()


def row(text: str, name: str) -> str:
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)
    assert found, name
    return found[1]


def test_figures_of_the_run(run, tmp_path):
    text = card(run, tmp_path, "--title", "Birds of Europe")
    assert "# Birds of Europe" in text
    assert row(text, "samples seen") == "6,000"
    assert row(text, "global batch size") == "1,024"
    assert row(text, "epochs") == "3 of 3"
    assert row(text, "last logged loss") == "0.8"
    assert row(text, "throughput, all devices, median") == "520 samples/s"
    assert row(text, "software and hardware") == SOFTWARE
    assert "| held-out data of the run (77 pairs) | `image_to_text_R@1` | 0.3000 |" in text
    assert "--lr 0.00123" in text
    assert "--precision amp_bf16" in text
    assert "/home/me" not in text.replace(str(tmp_path), "")
    for secret in ("token=", "abc", "pw@", "//me"):
        assert secret not in text.replace(str(tmp_path), "")
    assert row(text, "developed by") == BLANK


def test_figures_of_an_earlier_checkpoint(run, tmp_path):
    text = card(run, tmp_path, "--checkpoint", run / "checkpoints/epoch_2.pt")
    assert row(text, "samples seen") == "4,000"
    assert row(text, "epochs") == "2 of 3"
    assert row(text, "last logged loss") == "1.8"
    assert "`image_to_text_R@1` | 0.2000 |" in text


def test_without_a_run_what_is_not_known_is_marked(run, tmp_path):
    (tmp_path / "results.json").write_text(
        json.dumps({"dataset": "imagenet1k", "task": "zeroshot", "metrics": {"acc1": 0.5123}})
    )
    words = ("--model", f"local-dir:{tmp_path / 'model'}", "--results", tmp_path / "results.json")
    checkpoint = run / "checkpoints/epoch_2.pt"
    out = tmp_path / "out"
    assert export(*words, "--checkpoint", checkpoint, "--to", "open_clip", "--out", out) == 0
    text = (out / "README.md").read_text()
    for name in ("samples seen", "throughput, all devices, median", "software and hardware"):
        assert row(text, name) == BLANK
    assert "| imagenet1k | `acc1` | 0.5123 |" in text


def test_front_matter_and_tables_are_well_formed(run, tmp_path):
    text = card(run, tmp_path)
    assert re.match(r"---\n(?:[^\n]+\n)+---\n\n# out\n", text)
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/data/{0..9}.tar", "/data/{0..9}.tar"),
        ("https://u:p@h/x.tar", "https://h/x.tar"),
        ("s3://b/x.tar?sig=1::/y.tar", "s3://b/x.tar::/y.tar"),
    ],
)
def test_secrets_of_urls(given, shown):
    assert redacted(given) == shown
