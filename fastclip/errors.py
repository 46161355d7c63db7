"""What can go wrong for a user, and the exit status each kind ends with.

Anything else that escapes is a bug of ours: traceback and exit status 1. Only `cli/main.py`
turns these into exit statuses. The numbers follow BSD's sysexits where it has one.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    BUG = 1
    USAGE = 2
    DATA_UNUSABLE = 65
    INPUT_MISSING = 66
    ENVIRONMENT = 69
    RANKS_DISAGREE = 70
    CANNOT_WRITE = 74
    PREEMPTED = 75
    NON_FINITE = 76
    INTERRUPTED = 130


class FastclipError(Exception):
    """Base of every error that is reported as one line. The message says what, where and what to do."""

    exit_code = ExitCode.BUG


class UserError(FastclipError):
    """A flag has a bad value, or two flags contradict each other."""

    exit_code = ExitCode.USAGE


class DataError(FastclipError):
    """The data is there and cannot be used."""

    exit_code = ExitCode.DATA_UNUSABLE


class InputMissing(FastclipError):
    """A file or folder that a flag names is not there, or cannot be read."""

    exit_code = ExitCode.INPUT_MISSING


class EnvironmentProblem(FastclipError):
    """The machine or the installation lacks something that the given flags need."""

    exit_code = ExitCode.ENVIRONMENT


class RanksDisagree(FastclipError):
    """The processes of one run do not agree on something they must agree on."""

    exit_code = ExitCode.RANKS_DISAGREE


class CannotWrite(FastclipError):
    """A result could not be written."""

    exit_code = ExitCode.CANNOT_WRITE


class Preempted(FastclipError):
    """The run was told to stop, and has saved where it was."""

    exit_code = ExitCode.PREEMPTED


class NonFiniteTraining(FastclipError):
    """Loss or gradients stayed infinite or NaN."""

    exit_code = ExitCode.NON_FINITE
