"""Every flag arrives in its field, unchanged; refusals and contradictions are one line each."""

from __future__ import annotations

import argparse
import pickle
import shlex
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from fastclip.config.images import AugmentConfig
from fastclip.config.parse import TrainParser, parse_args
from fastclip.config.resolve import REFUSED, resolve
from fastclip.config.train_config import TrainConfig
from fastclip.errors import UserError
from tests.config.flag_lists import OWN_DESTS, by_name

TRAIN = ["--train-data", "a.tar"]

USERS_SCRIPT = """
--aug-cfg scale='(0.4, 1.0)' color_jitter='(0.32, 0.32, 0.32, 0.08)' color_jitter_prob=0.8
gray_scale_prob=0.2 use_timm=True --save-frequency 1 --zeroshot-frequency 1
--dataset-type webdataset --train-data '/path/to/data' --report-to tensorboard
--train-num-samples 1398270000 --warmup 2000 --batch-size 896 --epochs 24 --workers 8
--model ViT-B-32-256 --logs logs --seed 0 --ddp-static-graph --local-loss --gather-with-grad
--lr 0.001 --log-every-n-steps 20 --save-most-recent --resume latest --grad-checkpointing
--precision amp_bfloat16 --beta1 0.9 --beta2 0.95 --wd 0.2
"""


def resolved(*argv: str) -> TrainConfig:
    return resolve(parse_args(list(argv)))


def leaves(config: object, prefix: str = "") -> dict[str, object]:
    """`slice.field` -> value, for all fields of all slices (`flags` aside)."""
    found: dict[str, object] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name == "flags":
            continue
        if is_dataclass(value) and not isinstance(value, AugmentConfig):
            found |= leaves(value, f"{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def test_the_users_script_is_understood_flag_for_flag() -> None:
    config = resolved(*shlex.split(USERS_SCRIPT))
    changed = {k: v for k, v in leaves(config).items() if v != leaves(resolved(*TRAIN))[k]}
    assert changed == {
        "data.augment": AugmentConfig(
            scale=(0.4, 1.0),
            color_jitter=(0.32, 0.32, 0.32, 0.08),
            color_jitter_prob=0.8,
            gray_scale_prob=0.2,
            use_timm=True,
        ),
        "evaluation.zeroshot_frequency": 1,
        "data.dataset_type": "webdataset",
        "data.train_data": "/path/to/data",
        "log.tensorboard": True,
        "data.train_num_samples": 1_398_270_000,
        "optim.warmup": 2000,
        "data.batch_size": 896,
        "epochs": 24,
        "data.workers": 8,
        "model.name": "ViT-B-32-256",
        "log.logs": "logs",
        "distributed.ddp_static_graph": True,
        "loss.local_loss": True,
        "loss.gather_with_grad": True,
        "optim.lr": 0.001,
        "optim.beta2": 0.95,
        "optim.eps": 1e-6,  # by the model's name
        "log.log_every_n_steps": 20,
        "checkpoint.save_most_recent": True,
        "checkpoint.resume": "latest",
        "model.grad_checkpointing": True,
        "precision": "amp_bfloat16",
    }
    assert config.trains
    assert config.log.enabled


# dest -> (words beside the flag, its value, {field: value} it must change)
ELSEWHERE: dict[str, tuple[list[str], list[str], dict[str, object]]] = {
    "train_data": ([], ["b.csv"], {"data.train_data": "b.csv"}),
    "train_data_upsampling_factors": (
        ["--train-data", "a.tar::b.tar", "--dataset-resampled"],
        ["1::0.5"],
        {"data.train_data_upsampling_factors": (1.0, 0.5)},
    ),
    "model": ([], ["RN101"], {"model.name": "RN101"}),
    "dataset_type": (
        ["--train-num-samples", "9"],
        ["synthetic"],
        {"data.dataset_type": "synthetic"},
    ),
    "aug_cfg": ([], ["ratio=1,2"], {"data.augment": AugmentConfig(ratio=(1.0, 2.0))}),
    "image_mean": ([], ["0.1", "0.2", "0.3"], {"model.image_mean": (0.1, 0.2, 0.3)}),
    "image_std": ([], ["0.5"], {"model.image_std": (0.5,)}),
    "force_image_size": ([], ["64", "32"], {"model.force_image_size": (64, 32)}),
    "report_to": ([], ["wandb"], {"log.wandb": True}),
    "loss_dist_impl": (["--siglip"], ["reduce"], {"loss.loss_dist_impl": "reduce"}),
    "loss_backend": ([], ["torch"], {"loss.backend": "torch"}),
    "lr_scheduler": (
        ["--epochs-cooldown", "2"],
        ["const-cooldown"],
        {"optim.lr_scheduler": "const-cooldown"},
    ),
    "opt": (
        ["--lr", "1", "--beta1", ".9", "--beta2", ".98", "--eps", "1e-8"],
        ["timm/lamb"],
        {"optim.opt": "timm/lamb"},
    ),
    "optimizer_impl": (
        ["--precision", "amp_bf16"],
        ["apex"],
        {"optim.optimizer_impl": "apex"},
    ),
    "nodes": (["--dry-run"], ["3"], {"cluster.nodes": 3}),
    "gpus_per_node": (["--dry-run"], ["3"], {"cluster.gpus_per_node": 3}),
    "gpu": (["--dry-run"], ["h100"], {"cluster.gpu": "h100"}),
    "no_fast_resize": ([], [], {"data.fast_resize": False}),
    "no_packed_text": ([], [], {"model.packed_text": False}),
    "no_prune_last_block": ([], [], {"model.prune_last_block": False}),
    "no_fused_patch_embed": ([], [], {"model.fused_patch_embed": False}),
    "no_fused_pointwise": ([], [], {"model.fused_pointwise": False}),
    "unsafe_load": ([], [], {"model.unsafe_load": True, "checkpoint.unsafe_load": True}),
}


@pytest.mark.parametrize("flag", sorted(set(by_name(TrainParser())) - {"-h", "--help", *REFUSED}))
def test_each_flag_changes_its_own_field_and_no_other(flag: str) -> None:
    action = by_name(TrainParser())[flag]
    beside, value, expected = ELSEWHERE.get(action.dest, ([], None, {}))  # type: ignore[assignment]
    if value is None:
        if action.nargs == 0:
            value, typed = [], True
        elif action.choices is not None:
            typed = next(c for c in reversed(list(action.choices)) if c != action.default)
            value = [typed]
        else:
            typed = {int: 3, float: 0.25}.get(action.type, "word")  # type: ignore[arg-type]
            value = [str(typed)]
    before = leaves(resolved(*TRAIN, *beside))
    after = leaves(resolved(*TRAIN, *beside, flag, *value))
    changed = {k: v for k, v in after.items() if v != before[k]}
    if not expected:
        assert [k.split(".")[-1] for k in changed] == [action.dest]
        assert list(changed.values()) == [typed]
    else:
        assert changed == expected


@pytest.mark.parametrize(("words", "size"), [(["64"], 64), (["64", "32"], (64, 32))])
def test_image_size(words: list[str], size: object) -> None:
    config = resolved(*TRAIN, "--force-image-size", *words)
    assert config.model.force_image_size == size
    # as the reference's params.txt shows it
    assert config.flags["force_image_size"] == (size if isinstance(size, int) else [64, 32])


def test_flags_are_the_reference_namespace_and_ours(
    reference_parse_args: Callable[[list[str]], argparse.Namespace],
) -> None:
    argv = shlex.split(USERS_SCRIPT)
    flags = resolved(*argv).flags
    assert list(flags) == sorted(flags)
    assert set(flags) & OWN_DESTS == OWN_DESTS
    theirs = vars(reference_parse_args(argv))
    lines = {f"{k}: {v}" for k, v in flags.items() if k not in OWN_DESTS}
    assert lines == {f"{k}: {v}" for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("text", "tensorboard", "wandb"),
    [
        ("", False, False),
        ("tensorboard", True, False),
        ("wandb,tensorboard", True, True),
        ("all", True, True),
        ("xwandby", False, True),  # reference: a substring test
        ("tb", False, False),
    ],
)
def test_report_to(text: str, tensorboard: bool, wandb: bool) -> None:
    log = resolved(*TRAIN, "--report-to", text).log
    assert (log.tensorboard, log.wandb) == (tensorboard, wandb)


def test_the_config_is_frozen_and_travels_to_other_processes() -> None:
    config = resolved(*shlex.split(USERS_SCRIPT))
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.data.batch_size = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--horovod"], "torchrun or srun"),
        (["--torchscript"], "--torchcompile"),
        (["--trace"], "--torchcompile"),
        (["--use-bnb-linear", "SwitchBackLinearGlobal"], "--precision amp_bf16"),
    ],
)
def test_refused_flags_parse_and_then_end_in_one_line(words: list[str], advice: str) -> None:
    namespace = parse_args([*TRAIN, *words])
    with pytest.raises(UserError, match=advice) as raised:
        resolve(namespace)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{words[0]} is refused: ")


def test_nothing_else_is_refused() -> None:
    assert set(REFUSED) == {"--horovod", "--torchscript", "--trace", "--use-bnb-linear"}


SHARDS = ["--train-data", "a.tar::b.tar"]
EVAL = ["--val-data", "v.tar"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data: give --train-data"),
        (["--train-data", ""], "no data"),
        ([*TRAIN, "--batch-size", "0"], "--batch-size 0: must be greater than 0"),
        ([*TRAIN, "--workers", "-1"], "--workers -1: must be 0 or greater"),
        ([*TRAIN, "--keep-last", "-1"], "--keep-last -1: must be 0 or greater"),
        (
            [*TRAIN, "--keep-last", "2", "--delete-previous-checkpoint"],
            "--keep-last 2 with --delete-previous-checkpoint, which keeps one: leave one of them out",
        ),
        ([*TRAIN, "--train-num-samples", "0"], "--train-num-samples 0: must be greater"),
        (["--dataset-type", "synthetic"], "needs --train-num-samples"),
        ([*EVAL, "--imagenet-val", ""], "--imagenet-val is empty"),
        ([*SHARDS, "--train-data-up", "1::2"], "add --dataset-resampled"),
        (
            [*SHARDS, "--train-data-up", "1::2::3", "--dataset-res"],
            "has 3 numbers and --train-data 2",
        ),
        ([*SHARDS, "--train-data-up", "1::x", "--dataset-res"], "one number per source"),
        ([*SHARDS, "--train-data-up", "0::0", "--dataset-res"], "one of them greater"),
        ([*SHARDS, "--train-data-up", "1::-2", "--dataset-res"], "0 or greater"),
        ([*TRAIN, "--image-mean", "1", "2"], "--image-mean takes 1 or 3 numbers, got 2"),
        ([*TRAIN, "--image-std", "0.5", "0", "0.5"], "cannot be 0"),
        ([*TRAIN, "--image-std", "nan"], "finite"),
        ([*TRAIN, "--torchcompile", "--no-fused-pointwise"], "drop one of them"),
        ([*TRAIN, "--force-image-size", "1", "2", "3"], "one number, or height and width"),
        ([*TRAIN, "--force-image-size", "0"], "must be greater than 0"),
        ([*TRAIN, "--force-context-length", "0"], "must be greater than 0"),
        ([*TRAIN, "--force-patch-dropout", "1"], "below 1"),
        ([*TRAIN, "--model", ""], "--model is empty"),
        ([*TRAIN, "--lock-image-unlocked-groups", "-1"], "0 or greater"),
        ([*TRAIN, "--opt", "sgd"], "choose adamw or timm/NAME"),
        ([*TRAIN, "--opt", "timm/lamb"], "needs --lr"),
        ([*TRAIN, "--opt", "timm/lamb", "--lr", "1", "--beta1", "0.9"], "both --beta1 and --beta2"),
        (
            [
                *TRAIN,
                *[
                    "--optimizer-impl",
                    "apex",
                    "--opt",
                    "timm/lamb",
                    "--lr",
                    "1",
                    "--precision",
                    "fp32",
                ],
            ],
            "--optimizer-impl apex is for --opt adamw, not for timm/lamb",
        ),
        ([*TRAIN, "--optimizer-impl", "apex"], "does not go with --precision amp: "),
        *(
            (
                [*TRAIN, "--optimizer-impl", "apex", "--precision", precision],
                f"does not go with --precision {precision}: ",
            )
            for precision in ("fp16", "bf16", "pure_fp16", "pure_bf16")
        ),
        ([*TRAIN, "--lr", "nan"], "finite"),
        ([*TRAIN, "--lr", "-1"], "0 or greater"),
        ([*TRAIN, "--beta2", "1"], "below 1"),
        ([*TRAIN, "--accum-freq", "0"], "--accum-freq 0"),
        ([*TRAIN, "--grad-clip-norm", "0"], "--grad-clip-norm 0"),
        ([*TRAIN, "--lr-scheduler", "linear"], "choose cosine, const or const-cooldown"),
        ([*TRAIN, "--lr-scheduler", "const-cooldown"], "needs --epochs-cooldown"),
        ([*TRAIN, "--siglip", "--loss-dist-impl", "ring"], "choose bidir, shift, reduce or gather"),
        ([*TRAIN, "--siglip", "--model", "coca_ViT-B-32"], "no logit bias"),
        (
            [*TRAIN, "--siglip", "--distill-model", "RN50", "--distill-pretrained", "x"],
            "no logit bias",
        ),
        (
            [*TRAIN, "--distill-model", "RN50", "--distill-pre", "x", "--accum-freq", "2"],
            "--accum-freq 1 only",
        ),
        (
            [*TRAIN, "--distill-model", "RN50", "--distill-pre", "x", "--model", "coca_base"],
            "does not work with CoCa",
        ),
        (
            [*TRAIN, "--remote-sync", "s3://x", "--resume", "latest", "--save-most-recent"],
            "epoch_latest.pt is never copied",
        ),
        (
            [
                *TRAIN,
                "--remote-sync",
                "x",
                "--resume",
                "latest",
                "--remote-sync-protocol",
                "fsspec",
            ],
            "needs --remote-sync-protocol s3",
        ),
        ([*TRAIN, "--remote-sync", ""], "--remote-sync is empty"),
        ([*TRAIN, "--log-every-n-steps", "0"], "--log-every-n-steps 0"),
        ([*TRAIN, "--epochs", "-1"], "--epochs -1"),
        ([*TRAIN, "--seed", "-1"], "--seed -1"),
        ([*TRAIN, "--aug-cfg", "skale=1"], "did you mean scale"),
    ],
)
def test_what_cannot_run_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        resolved(*argv)
    assert "\n" not in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "argv",
    [
        [*TRAIN, "--siglip", "--local-loss", "--gather-with-grad"],
        [*TRAIN, "--loss-dist-impl", "ring"],  # read with --siglip only
        [*TRAIN, "--siglip", "--loss-dist-impl", ""],
        [*TRAIN, "--lock-text"],
        [*TRAIN, "--lock-image-unlocked-groups", "3"],
        [*TRAIN, "--distill-model", "RN50"],  # half given is off
        [*TRAIN, "--distill-model", "RN50", "--accum-freq", "2"],
        [*TRAIN, "--epochs-cooldown", "3"],
        [*TRAIN, "--keep-last", "1", "--delete-previous-checkpoint"],
        [*TRAIN, "--opt", "AdamW"],
        [*TRAIN, "--opt", "TIMM/lamb"],  # the reference fills the defaults: no lower-case timm
        [*TRAIN, "--opt", "timm/lion", "--lr", "1e-4"],  # lion has no epsilon
        [*TRAIN, "--opt", "timm/lamb", "--skip-scheduler"],  # timm's own learning rate
        [*TRAIN, "--grad-clip-norm", "inf"],
        [*TRAIN, "--epochs", "0"],
        [*TRAIN, "--warmup", "0"],
        [*TRAIN, "--save-frequency", "0", "--zeroshot-frequency", "0", "--val-frequency", "0"],
        [*TRAIN, "--save-frequency", "-1", "--zeroshot-frequency", "-2"],
        [*TRAIN, "--logs", "none"],
        [*TRAIN, "--remote-sync-frequency", "0"],
        [*TRAIN, "--resume", "latest", "--save-most-recent", "--remote-sync-protocol", "fsspec"],
        ["--train-data", "a.csv", "--train-data-upsampling-factors", "1::2"],  # not read for csv
        ["--dataset-type", "synthetic", "--train-num-samples", "8"],
        [*EVAL, "--opt", "timm/lamb"],  # an evaluation builds no optimiser
        [*EVAL, "--lr-scheduler", "const-cooldown"],
        [*EVAL, "--train-data-upsampling-factors", "1"],
        [*EVAL, "--train-num-samples", "0"],
        [*EVAL, "--siglip", "--model", "coca_ViT-B-32"],
        ["--imagenet-v2", "folder"],
    ],
)
def test_what_the_reference_runs_is_not_refused(argv: list[str]) -> None:
    resolved(*argv)


def test_logs_none() -> None:
    assert not resolved(*TRAIN, "--logs", "None").log.enabled
    assert resolved(*TRAIN).log.enabled


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        resolved(
            "--trace", "--batch-size", "0", "--workers", "-1", "--opt", "x", "--aug-cfg", "y=1"
        )
    lines = str(raised.value).split("\n")
    assert [line.split(" ")[0] for line in lines] == [
        "--trace", "--aug-cfg", "--batch-size", "--workers", "--opt", "no"
    ]  # fmt: skip
