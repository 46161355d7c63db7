"""The reference's own parser, and its `parse_args`, as fixtures."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def reference_parser() -> argparse.ArgumentParser:
    """The parser that OpenCLIP builds inside `parse_args`, taken from it before it parses."""
    from open_clip_train import params

    found: list[argparse.ArgumentParser] = []

    class Caught(Exception):
        pass

    def catch(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        found.append(self)
        raise Caught

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Caught):
            params.parse_args([])
    return found[0]


@pytest.fixture(scope="session")
def reference_parse_args() -> Callable[[list[str]], argparse.Namespace]:
    from open_clip_train.params import parse_args

    return parse_args
