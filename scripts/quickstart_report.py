"""Show what a quickstart run learned: its curves, and for held-out captions the pictures it finds.

    python scripts/quickstart_report.py quickstart/logs/demo quickstart

Reads `out.log` and `checkpoints/results.jsonl` of the run, and in the second folder `model/`, exported
from it, and `retrieval.json`, by which `fastclip eval` judged that; writes `loss_curve.png`,
`retrieval.png` and `index.html` there.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import math
import re
import tarfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from PIL import Image

import fastclip

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DEMO = Path(fastclip.__file__).parent / "demo"
ROWS, COLUMNS = 10, 5
# What `fastclip eval` calls what the trainer's own evaluation calls so.
WAYS = {"image_retrieval_recall": "text_to_image_R", "text_retrieval_recall": "image_to_text_R"}
RIGHT, WRONG = "#1a9850", "#d0d0d0"


class HeldOut(NamedTuple):
    pictures: list[Image.Image]
    captions: list[str]


class TrainPoint(NamedTuple):
    epoch: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="LOGS/NAME of the run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", default="", help="how it was trained, for the page")
    args = parser.parse_args()

    held_out = read_held_out(DEMO / "val-0000.tar")
    results = [
        json.loads(line) for line in read(args.run / "checkpoints/results.jsonl").splitlines()
    ]
    batch_size = int(re.search(r"^batch_size: (\d+)$", read(args.run / "params.txt"), re.M)[1])
    points = read_train_points(read(args.run / "out.log"))
    draw_curves(points, results, math.log(batch_size), args.out / "loss_curve.png")
    scores = text_to_image_scores(args.out / "model", held_out)
    draw_retrieval(held_out, scores, args.out / "retrieval.png")
    evaluated = json.loads(read(args.out / "retrieval.json"))["metrics"]
    text = page(results[-1], evaluated, args.command)
    (args.out / "index.html").write_text(text, encoding="utf-8")
    print(f"\n{summary(results[-1])}\nOpen {args.out / 'index.html'}")


def read_held_out(shard: Path) -> HeldOut:
    pictures, captions = [], []
    with tarfile.open(shard) as tar:
        for member in tar:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".jpg"):
                pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
            elif member.name.endswith(".txt"):
                captions.append(data.decode())
    return HeldOut(pictures, captions)


@torch.no_grad()
def text_to_image_scores(model_folder: Path, held_out: HeldOut) -> torch.Tensor:
    """Cosine of every caption (row) with every picture (column)."""
    name = f"local-dir:{model_folder}"
    model, _, preprocess = fastclip.create_model_and_transforms(name)
    tokenizer = fastclip.get_tokenizer(name)
    model.eval()
    pictures = torch.stack([preprocess(picture) for picture in held_out.pictures])
    image = model.encode_image(pictures, normalize=True)
    text = model.encode_text(tokenizer(held_out.captions), normalize=True)
    return text @ image.T


def read_train_points(log: str) -> list[TrainPoint]:
    line = re.compile(
        r"Train Epoch: (?P<epoch>\d+) \[\s*(?P<seen>\d+)/(?P<total>\d+) .* Loss: (?P<loss>\S+) "
    )
    points = []
    for match in line.finditer(log):
        epoch = int(match["epoch"]) + int(match["seen"]) / int(match["total"])
        points.append(TrainPoint(epoch, float(match["loss"])))
    return points


def draw_curves(
    points: list[TrainPoint], results: list[dict[str, Any]], untrained_loss: float, path: Path
) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot([p.epoch for p in points], [p.loss for p in points], color="#2166ac", linewidth=1.2)
    left.set(title="Contrastive loss of the training batches", xlabel="epoch", ylim=(0, None))
    left.axhline(untrained_loss, color="grey", linestyle=":", label="guessing")
    left.legend(frameon=False)
    epochs = [r["epoch"] for r in results]
    for name, label, color in (
        ("text_to_image_R@5", "caption to picture", "#1b7837"),
        ("image_to_text_R@5", "picture to caption", "#762a83"),
    ):
        right.plot(epochs, [100 * r[name] for r in results], color=color, label=label)
    right.axhline(100 * chance_at(5, results[-1]), color="grey", linestyle=":", label="chance")
    right.set(title="Held-out recall at 5", xlabel="epoch", ylabel="%", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_retrieval(held_out: HeldOut, scores: torch.Tensor, path: Path) -> None:
    """Captions at even distances in the shard, none picked by hand, each with its best pictures."""
    figure, axes = plt.subplots(
        ROWS,
        1 + COLUMNS,
        figsize=(10, 1.25 * ROWS),
        width_ratios=[2.4] + [1] * COLUMNS,
        layout="constrained",
    )
    rows = [round(i * (len(scores) - 1) / (ROWS - 1)) for i in range(ROWS)]
    for row, (caption_axes, *picture_axes) in zip(rows, axes, strict=True):
        caption_axes.set_axis_off()
        caption = "\n".join(textwrap.wrap(held_out.captions[row], 30))
        caption_axes.text(1, 0.5, caption, ha="right", va="center", fontsize=10)
        for rank, (ax, index) in enumerate(
            zip(picture_axes, scores[row].topk(COLUMNS).indices.tolist(), strict=True)
        ):
            ax.imshow(held_out.pictures[index])
            ax.set(xticks=[], yticks=[])
            right = index == row
            ax.spines[:].set(color=RIGHT if right else WRONG, linewidth=4 if right else 1)
            if row == 0:
                ax.set_title(f"{rank + 1}", fontsize=10)
    figure.suptitle(
        f"Held-out captions, and the {COLUMNS} of {len(scores)} held-out pictures nearest to each\n"
        "(green frame: the picture the caption was written for)",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def chance_at(k: int, result: dict[str, Any]) -> float:
    """Recall at k of somebody who guesses."""
    return min(1.0, k / result["num_samples"])


def summary(result: dict[str, Any]) -> str:
    chance = chance_at(5, result)
    there, back = result["text_to_image_R@5"], result["image_to_text_R@5"]
    return (
        f"Held-out R@5 after {result['epoch']} epochs: {there:.1%} caption to picture "
        f"({there / chance:.1f}x chance), {back:.1%} picture to caption ({back / chance:.1f}x); "
        f"chance is 5 of {result['num_samples']}, {chance:.1%}."
    )


def evaluated_again(result: dict[str, Any], evaluated: dict[str, float]) -> str:
    """Figures of the exported model beside those of the run's last evaluation, as a piece of the page."""
    names = [(f"{name}@{k}", f"{ours}@{k}") for name, ours in WAYS.items() for k in (1, 5, 10)]
    rows = "".join(
        f"<tr><td>{name}</td><td>{evaluated[name]:.4f}</td><td>{result[ours]:.4f}</td></tr>"
        for name, ours in names
    )
    apart = max(abs(evaluated[name] - result[ours]) for name, ours in names)
    verdict = "They are the same." if apart < 1e-9 else f"They differ by up to {apart:.4f}."
    return f"""<p><code>fastclip eval</code> on <code>model/</code>, beside the last evaluation during training.
{verdict}</p>
<table>
<tr><th></th><th>fastclip eval</th><th>in training</th></tr>
{rows}
</table>"""


def page(result: dict[str, Any], evaluated: dict[str, float], command: str) -> str:
    rows = "".join(
        f"<tr><td>R@{k}</td><td>{result[f'text_to_image_R@{k}']:.1%}</td>"
        f"<td>{result[f'image_to_text_R@{k}']:.1%}</td><td>{chance_at(k, result):.1%}</td></tr>"
        for k in (1, 5, 10)
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>fastclip quickstart</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto }}
img {{ max-width: 100% }}
td, th {{ padding: .2rem 1rem .2rem 0; text-align: right }}
td:first-child {{ text-align: left }}
pre {{ background: #f4f4f4; padding: .8rem; white-space: pre-wrap }}
</style>
<h1>A small CLIP, trained on this machine</h1>
<p>{html.escape(summary(result))}</p>
<table>
<tr><th></th><th>caption to picture</th><th>picture to caption</th><th>chance</th></tr>
{rows}
</table>
<h2>Evaluated after the export</h2>{evaluated_again(result, evaluated)}
<h2>How it learned</h2><img src="loss_curve.png" alt="training loss and held-out recall by epoch">
<h2>What it finds</h2><img src="retrieval.png" alt="captions with their nearest pictures">
<h2>The command</h2><pre>{html.escape(command)}</pre>
<p>The trained model is in <code>model/</code>:
<code>fastclip.create_model_and_transforms("local-dir:quickstart/model")</code>, or the same line
with <code>open_clip</code>. The run's log, flags and checkpoint are in <code>logs/demo/</code>.</p>
"""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
