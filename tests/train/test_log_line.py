"""The train line is an interface: scripts parse it. Golden text, and the reference's own line beside ours."""

import dataclasses
import re

from fastclip.train.log import TrainLine

LINE = TrainLine(
    epoch=0,
    step=4,
    steps_per_epoch=7,
    samples_per_step=16,
    samples_per_epoch=112,
    world_size=1,
    data_time=0.017,
    batch_time=16 / 101.734,
    lr=0.000467,
    logit_scale=14.263,
    losses={"contrastive_loss": 2.8316, "loss": 2.8316},
    mean_losses={"contrastive_loss": 3.0333, "loss": 3.0333},
    grad_norm=1.25,
    eta=3725.4,
)

# One real line of open_clip_train 3.3.0, --accum-freq 2 (batch time is the only figure that differs: theirs is of
# the window, their rate of the last step).
REFERENCE = (
    "Train Epoch: 0 [ 80/112 (71%)] Data (t): 0.017 Batch (t): 0.157, 101.734/s, 101.734/s/gpu "
    "LR: 0.000467 Logit Scale: 14.263 Contrastive_loss: 2.8316 (3.0333) Loss: 2.8316 (3.0333)"
)


def test_line_begins_with_the_reference_line_and_ends_with_our_fields() -> None:
    assert LINE.text() == REFERENCE + " Wait: 10.8% Grad Norm: 1.25 ETA: 1:02:05"


def test_troubles_are_shown_when_there_are_any() -> None:
    line = dataclasses.replace(LINE, skipped_updates=3, bad_samples=17).text()
    assert line.endswith("ETA: 1:02:05 Skipped Updates: 3 Bad Samples: 17")


def test_a_plotting_script_that_parses_the_reference_parses_ours() -> None:
    pattern = re.compile(
        r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) \((\d+)%\)\] Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+), "
        r"([\d.e+]+)/s, ([\d.e+]+)/s/gpu LR: ([\d.]+) Logit Scale: ([\d.]+) .*?\bLoss: ([\d.]+) \(([\d.]+)\)"
    )
    ours, theirs = pattern.search(LINE.text()), pattern.search(REFERENCE)
    assert ours is not None
    assert theirs is not None
    assert ours.groups() == theirs.groups()


def test_per_gpu_rate_and_tags() -> None:
    line = dataclasses.replace(LINE, world_size=4, batch_time=0.5)
    assert "32.0000/s, 8.00000/s/gpu" in line.text()
    scalars = line.scalars()
    reference_tags = {
        "train/data_time",
        "train/batch_time",
        "train/samples_per_second",
        "train/samples_per_second_per_gpu",
        "train/scale",
        "train/lr",
        "train/contrastive_loss",
        "train/loss",
    }
    assert reference_tags == {tag for tag in scalars if tag.startswith("train/")}
    assert scalars["train/samples_per_second_per_gpu"] == 8.0


def test_wait_utilisation_and_time_left_have_tags_of_their_own() -> None:
    scalars = dataclasses.replace(LINE, data_time=0.1, batch_time=0.4, mfu=0.5).scalars()
    own = {tag: value for tag, value in scalars.items() if tag.startswith("perf/")}
    assert own == {"perf/wait_share": 0.25, "perf/eta_seconds": 3725.4, "perf/mfu": 0.5}
    assert "perf/mfu" not in LINE.scalars()  # where the chip's peak is not known
