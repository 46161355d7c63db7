"""The command: exit statuses, one line per mistake, quick help, quiet pipes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import fastclip
from fastclip import errors
from fastclip.cli.main import main
from fastclip.config.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["train", "--train-data", "a.tar", "--train-num-samples", "9"]

Training = Callable[[Callable[[TrainConfig], None]], None]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Replaces what `fastclip train` starts."""

    def replace(run: Callable[[TrainConfig], None]) -> None:
        module = ModuleType("fastclip.train.run")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fastclip.train.run", module)

    return replace


def command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastclip", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def test_train_hands_the_config_over(training: Training) -> None:
    seen: list[TrainConfig] = []
    training(seen.append)
    assert main([*TRAIN, "--epochs", "3"]) == 0
    assert [config.epochs for config in seen] == [3]


@pytest.mark.parametrize(
    "kind",
    [
        errors.UserError,
        errors.DataError,
        errors.InputMissing,
        errors.EnvironmentProblem,
        errors.RanksDisagree,
        errors.CannotWrite,
        errors.NonFiniteTraining,
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_our_errors_are_one_line_and_their_exit_status(
    kind: type[errors.FastclipError],
    debug: bool,
    training: Training,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(config: TrainConfig) -> None:
        raise kind("no such thing: do this")

    training(run)
    assert main([*TRAIN, "--debug"] if debug else TRAIN) == kind.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "fastclip: error: no such thing: do this"
    assert (len(lines) > 1) == debug
    assert any("Traceback" in line for line in lines) == debug


def test_interrupt(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    training(run)
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == "fastclip: interrupted\n"


def test_a_bug_of_ours_shows_its_traceback(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: TrainConfig) -> None:
        raise BrokenPipeError("a loader died")  # not the reader of --help

    training(run)
    assert main(TRAIN) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "BrokenPipeError: a loader died" in err


def test_mistakes_in_flags_start_nothing(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: TrainConfig) -> None:
        pytest.fail("training started")

    training(run)
    assert main([*TRAIN, "--wormup", "3", "--epochs", "many"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "fastclip train: error: --epochs 'many': expected a whole number",
        "fastclip train: error: unknown flag --wormup; did you mean --warmup?",
    ]
    assert main([*TRAIN, "--horovod"]) == 2
    assert capsys.readouterr().err.startswith("fastclip train: error: --horovod is refused: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["bench"], "unknown command 'bench'; there is train, export, data, doctor"),
        (["--lr", "3"], "--lr: the command comes first, as in `fastclip train --lr ...`"),
    ],
)
def test_wrong_commands(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"fastclip: error: {message}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--version"], ["train", "--help"]])
def test_help_and_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    wanted = fastclip.__version__ if words == ["--version"] else "usage: fastclip"
    assert wanted in out


def test_version_is_the_distributions() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == fastclip.__version__  # type: ignore[index]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_is_quick(words: list[str]) -> None:
    """Half a second, in processor time: other work on the machine is not our slowness."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command(*words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(sum(after[:2]) - sum(before[:2]))  # user + system
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the write fails at the flush, or at once
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_closed_pipe_is_quiet(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastclip", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


def test_errors_reach_the_shell() -> None:
    done = command("train", "--train-data", "a.tar", "--trace")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_with_130() -> None:
    """A real signal, while training (here: a sleep) goes on in a process of its own."""
    script = (
        "import sys, time, types\n"
        "module = types.ModuleType('fastclip.train.run')\n"
        "module.run = lambda config: (print('on', flush=True), time.sleep(60))\n"
        "sys.modules['fastclip.train.run'] = module\n"
        "from fastclip.cli.main import main\n"
        f"sys.exit(main({TRAIN!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == "fastclip: interrupted\n"
