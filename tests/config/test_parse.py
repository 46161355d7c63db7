"""What comes out of a command line equals the reference's namespace; mistakes are one line each."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import pytest

from fastclip.config.parse import TrainParser, parse_args
from fastclip.errors import UserError
from tests.config.flag_lists import OWN_DESTS, by_name

ReferenceParse = Callable[[list[str]], argparse.Namespace]

MODELS = ["RN50", "ViT-B-32-256", "vit_medium", "hf-hub:org/SomeViT", "coca_base", "convnext_base"]
WORDS = ["a", "/data/x.tar", "x::y", "", "none", "with space", "-", "a=b", "{0..3}.tar", "é"]
AUG = [
    "scale=(0.4, 1.0)",
    "scale=0.4,1.0",
    "scale=[0.4,1.0]",
    "ratio=0.75,1.5",
    "color_jitter=0.4",
    "use_timm=True",
    "use_timm=true",
    "interpolation=bicubic",
    "re_prob=.25",
    "re_count=3",
    "re_mode='pixel'",
    "x=None",
    "name=0x10",
    "name= 3",
]


def random_words(action: argparse.Action, rng: random.Random) -> list[str]:
    if action.nargs == 0:
        return []
    if action.dest == "aug_cfg":
        return rng.sample(AUG, rng.randrange(5))
    if action.dest == "model":
        return [rng.choice(MODELS)]
    if action.dest == "opt":
        return [rng.choice(["adamw", "timm/lamb", "AdamW", "TIMM/x"])]
    count = rng.randint(1, 3) if action.nargs == "+" else 1
    if action.choices is not None:
        return [str(rng.choice(list(action.choices)))]
    if action.type is int:
        return [str(rng.randint(-5, 10**9)) for _ in range(count)]
    if action.type is float:
        return [repr(rng.choice([rng.uniform(-2, 2), 1e-9, 0.0, 5.0])) for _ in range(count)]
    return [rng.choice(WORDS)]


def test_random_command_lines_give_the_reference_namespace(
    reference_parser: argparse.ArgumentParser, reference_parse_args: ReferenceParse
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    flags = {f: a for f, a in by_name(reference_parser).items() if f not in ("-h", "--help")}
    for _ in range(150):
        argv: list[str] = []
        for flag in rng.choices(list(flags), k=rng.randrange(25)):
            words = random_words(flags[flag], rng)
            if len(words) == 1 and rng.random() < 0.3:
                argv.append(f"{flag}={words[0]}")
            else:
                argv += [flag, *words]
        ours = {k: v for k, v in vars(parse_args(argv)).items() if k not in OWN_DESTS}
        assert ours == vars(reference_parse_args(argv)), argv


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", [[], ["--lr", "0"], ["--beta2", "0.5", "--eps", "1"]])
@pytest.mark.parametrize("opt", ["adamw", "timm/lamb", "TIMM/lamb"])
def test_optimiser_defaults_depend_on_the_model_as_in_the_reference(
    model: str, given: list[str], opt: str, reference_parse_args: ReferenceParse
) -> None:
    argv = ["--model", model, "--opt", opt, *given]
    ours, theirs = parse_args(argv), reference_parse_args(argv)
    for name in ("lr", "beta1", "beta2", "eps"):
        assert getattr(ours, name) == getattr(theirs, name), (model, name)


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["--modle", "x"], ["unknown flag --modle; did you mean --model?"]),
        (["--batch_size=3"], ["unknown flag --batch_size; did you mean --batch-size?"]),
        (["-lr", "3"], ["unknown flag -lr; did you mean --lr?"]),
        (["--qqqqqq"], ["unknown flag --qqqqqq; see fastclip train --help"]),
        (["--", "--lr", "3"], ["unexpected word '--': every value follows a --flag"]),
        (["stray"], ["unexpected word 'stray': every value follows a --flag"]),
        (["--lr", "fast"], ["--lr 'fast': expected a number"]),
        (["--image-mean", "1", "x"], ["--image-mean 'x': expected a number"]),
        (["--epochs", "1.5"], ["--epochs '1.5': expected a whole number"]),
        (["--lr"], ["--lr: expected one argument"]),
        (["--siglip=yes"], ["--siglip: takes no value"]),
        (
            ["--decoder", "dall"],
            ["--decoder 'dall': choose auto, dali or pillow; did you mean dali?"],
        ),
        (
            ["--workers", "many", "--precision", "bf6", "--nmae", "x", "--epochs", "x"],
            [
                "--workers 'many': expected a whole number",
                "--precision 'bf6': choose amp, amp_bf16, amp_bfloat16, bf16, fp16, pure_bf16, "
                "pure_fp16 or fp32; did you mean bf16?",
                "--epochs 'x': expected a whole number",
                "unknown flag --nmae; did you mean --name?",
            ],
        ),
        (
            ["--epochs", "x", "--wd"],
            ["--epochs 'x': expected a whole number", "--wd: expected one"],
        ),
    ],
)
def test_every_mistake_is_one_line(argv: list[str], lines: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        parse_args(argv)
    found = str(raised.value).split("\n")
    assert len(found) == len(lines)
    for have, want in zip(found, lines, strict=True):
        assert have.startswith(want)


def test_what_the_reference_refuses_is_refused(
    reference_parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["--batch-size", "2.0"], ["x"], ["--lr"], ["--precision", "x"], ["--image-mean"]):
        with pytest.raises(SystemExit):
            reference_parser.parse_args(argv)
        with pytest.raises(UserError):
            TrainParser().parse(argv)
    capsys.readouterr()


def test_a_parser_can_be_used_again_after_a_mistake() -> None:
    parser = TrainParser()
    with pytest.raises(UserError):
        parser.parse(["--epochs", "x"])
    assert parser.parse(["--epochs", "3"]).epochs == 3
