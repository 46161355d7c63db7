"""`--aug-cfg`: the reference's dictionary, the reference's meaning, and no traceback for a typo."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from fastclip.config.aug_cfg import make_augment_config, parse_word
from fastclip.config.images import AugmentConfig
from fastclip.config.parse import parse_args
from fastclip.errors import UserError

ReferenceParse = Callable[[list[str]], argparse.Namespace]


def config(*words: str) -> AugmentConfig:
    return make_augment_config(parse_args(["--aug-cfg", *words]).aug_cfg)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["scale=(0.4, 1.0)"],
        ["scale=0.4,1.0"],
        ["scale=[0.4,1.0]"],
        ["use_timm=True", "use_timm=False"],
        ["use_timm=true", "re_mode=pixel"],
        ["color_jitter=(0.32, 0.32, 0.32, 0.08)", "color_jitter_prob=0.8", "gray_scale_prob=.2"],
        ["x=-1", "y={'a': 1}", "z=b'x'", "w=1e3", "v=1_000", "u=None", "t=a b"],
    ],
)
def test_dictionary_equals_the_reference(
    words: list[str], reference_parse_args: ReferenceParse
) -> None:
    if "t=a b" in words:  # two bare words: the reference dies of a SyntaxError
        words = words[:-1]
    argv = ["--aug-cfg", *words]
    ours, theirs = parse_args(argv).aug_cfg, reference_parse_args(argv).aug_cfg
    assert ours == theirs
    assert [type(v) for v in ours.values()] == [type(v) for v in theirs.values()]


def test_the_second_aug_cfg_replaces_the_first(reference_parse_args: ReferenceParse) -> None:
    argv = ["--aug-cfg", "scale=0.4,1.0", "--aug-cfg", "use_timm=True"]
    assert parse_args(argv).aug_cfg == reference_parse_args(argv).aug_cfg == {"use_timm": True}


@pytest.mark.parametrize("word", ["scale", "=1", "a=b=c", "scale=(", "x=", "x=a b", "x={[]: 1}"])
def test_a_malformed_word_is_one_line(word: str) -> None:
    with pytest.raises(UserError, match="--aug-cfg") as raised:
        parse_word(word)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="--aug-cfg"):
        parse_args(["--aug-cfg", word, "--epochs", "3"])


def test_the_users_script() -> None:
    assert config(
        "scale=(0.4, 1.0)",
        "color_jitter=(0.32, 0.32, 0.32, 0.08)",
        "color_jitter_prob=0.8",
        "gray_scale_prob=0.2",
        "use_timm=True",
    ) == AugmentConfig(
        scale=(0.4, 1.0),
        color_jitter=(0.32, 0.32, 0.32, 0.08),
        color_jitter_prob=0.8,
        gray_scale_prob=0.2,
        use_timm=True,
    )


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["use_timm=true"], "use_timm", True),
        (["use_timm=yes"], "use_timm", True),
        (["use_timm=1"], "use_timm", True),
        (["use_timm=0"], "use_timm", False),
        (["use_timm=None"], "use_timm", False),
        (["color_jitter=1"], "color_jitter", 1.0),
        (["color_jitter=[0.1,0.2,0.3]"], "color_jitter", (0.1, 0.2, 0.3)),
        (["color_jitter=None"], "color_jitter", None),
        (["scale=(1,0.5)", "use_timm=True"], "scale", (0.5, 1.0)),
        (["scale=None", "use_timm=True"], "scale", (0.08, 1.0)),
        (["ratio=1,2"], "ratio", (1.0, 2.0)),
        (["re_prob=1"], "re_prob", 1.0),
        (["re_count=2.0"], "re_count", 2),
        ([], "scale", (0.9, 1.0)),
    ],
)
def test_values_that_the_reference_runs_keep_their_meaning(
    words: list[str], field: str, value: object
) -> None:
    assert getattr(config(*words), field) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"skale": 1}, "did you mean scale"),
        ({"use-timm": True}, "did you mean use_timm"),
        ({"grayscale_prob": 0.2}, "did you mean gray_scale_prob"),
        ({"hflip": 0.5}, "no such key"),
        ({"use_timm": "false"}, "True or False"),  # the reference would switch it on
        ({"use_timm": "no"}, "True or False"),
        ({"use_timm": (1,)}, "True or False"),
        ({"scale": 0.4}, "two numbers"),
        ({"scale": "0.4-1.0"}, "two numbers"),
        ({"scale": (0.4, 0.5, 1.0)}, "two numbers"),
        ({"scale": (-0.1, 1.0)}, "two numbers"),
        ({"scale": (0.1, float("inf"))}, "two numbers"),
        ({"scale": (1.0, 0.4)}, "smaller first"),
        ({"scale": None}, "two numbers"),
        ({"ratio": (0, 1)}, "two numbers"),
        ({"color_jitter": (0.1, 0.2)}, "one number, or brightness"),
        ({"color_jitter": (0.1, 0.2, 0.3, 0.6)}, "at most 0.5"),
        ({"color_jitter": -0.1}, "0 or greater"),
        ({"color_jitter": "none"}, "one number"),
        ({"color_jitter_prob": 0.5}, "needs color_jitter with four numbers"),
        ({"color_jitter_prob": 0.5, "color_jitter": 0.4}, "needs color_jitter with four numbers"),
        ({"gray_scale_prob": 20}, "from 0 to 1"),
        ({"re_prob": "often"}, "from 0 to 1"),
        ({"re_count": 1.5}, "whole number"),
        ({"re_count": 0}, "whole number"),
    ],
)
def test_what_cannot_work_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_augment_config(values)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("--aug-cfg ")


def test_several_mistakes_are_several_lines() -> None:
    with pytest.raises(UserError) as raised:
        make_augment_config({"skale": 1, "ratio": 3, "re_prob": 2})
    assert len(str(raised.value).split("\n")) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"use_timm": "true", "color_jitter": 0.4},
        {"use_timm": 1, "scale": (1.0, 0.5), "ratio": [0.5, 2]},
        {"use_timm": True, "color_jitter": (0.1, 0.1, 0.1), "re_prob": 0.5, "re_count": 3},
        {"use_timm": True, "scale": None},
        {"scale": [0.5, 1], "color_jitter_prob": 1, "color_jitter": [0, 0.1, 0.1, 0.5]},
        {"color_jitter": 0.5, "gray_scale_prob": 0.5},
        {"color_jitter_prob": 0, "re_prob": 0.3},
    ],
)
def test_the_reference_runs_what_we_accept(values: dict[str, Any]) -> None:
    import warnings

    import numpy as np
    from open_clip.transform import image_transform
    from PIL import Image

    make_augment_config(values)
    picture = Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = image_transform(16, is_train=True, aug_cfg=dict(values))
        assert transform(picture).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "values",
    [
        {"skale": (0.4, 1.0)},
        {"scale": 0.4},
        {"scale": None},
        {"scale": (1.0, 0.4)},
        {"color_jitter_prob": 0.5, "color_jitter": 0.4},
        {"use_timm": True, "color_jitter": (0.1, 0.2)},
        {"use_timm": True, "color_jitter": (0.1, 0.2, 0.3, 0.6)},
        {"use_timm": True, "ratio": (0, 1)},
    ],
)
def test_the_reference_cannot_run_what_we_refuse(values: dict[str, Any]) -> None:
    """A sample of the refusals above; the others are words and numbers that it misreads."""
    import warnings

    import numpy as np
    from open_clip.transform import image_transform
    from PIL import Image

    with pytest.raises(UserError):
        make_augment_config(values)
    picture = Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception):  # noqa: B017, PT011 - any of five kinds
            image_transform(16, is_train=True, aug_cfg=dict(values))(picture)
