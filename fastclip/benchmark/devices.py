"""Which devices encode pictures, and the processes on all of them but the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from fastclip.benchmark.features import Share, encode_share
from fastclip.benchmark.model import load_subject
from fastclip.config.eval_options import EvalOptions
from fastclip.data.worker import set_up_worker
from fastclip.errors import EnvironmentProblem, FastclipError, UserError


def devices_of(options: EvalOptions) -> list[str]:
    """Those that `--device` names; without it all GPUs, or the CPU. Raises UserError, EnvironmentProblem."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device is None:
        return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
    names = options.device.split(",")
    try:
        found = [torch.device(name) for name in names]
    except RuntimeError:
        raise UserError(
            f"--device {options.device!r}: cpu, cuda, cuda with a number, or several with commas"
        ) from None
    if len({device.type for device in found}) > 1:
        raise UserError(f"--device {options.device}: all must be of one kind")
    for device in found:
        if device.type == "cuda" and (device.index or 0) >= gpus:
            raise EnvironmentProblem(f"--device {device}: torch finds {gpus or 'no'} GPUs here")
    return names


class OtherDevice:
    """A process with the same model on another device, which encodes one share of pictures after another."""

    def __init__(self, options: EvalOptions, device: str) -> None:
        context = get_context("spawn")  # a forked process cannot use CUDA
        self._device = device
        self._connection, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(replace(options, device=device), there)
        )
        self._process.start()
        there.close()  # else its end would not be seen here
        self._started = 0

    def start(self, share: Share) -> None:
        """Shares are done one after another."""
        self._started += 1
        try:
            self._connection.send((self._started, share))
        except OSError:
            raise self._gone() from None

    def result(self) -> dict[str, int]:
        """Wait until the share that was started last is done; pictures left out, by cause. Raises what went wrong
        there, and EnvironmentProblem where the process is gone."""
        number: int = 0
        answer: dict[str, int] | FastclipError = {}
        try:
            while number != self._started:  # nobody asked for the result of an earlier one
                number, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(answer, FastclipError):
            raise answer
        return answer

    def end(self) -> None:
        """At once, whatever it does: what it has finished is on disk."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _gone(self) -> EnvironmentProblem:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return EnvironmentProblem(
            f"the process on device {self._device} ended ({how}), with -9 most often for want of memory; "
            "start again and finished parts are kept"
        )


@contextmanager
def other_devices(options: EvalOptions, devices: Sequence[str]) -> Iterator[list[OtherDevice]]:
    """A process for each of `devices`; all are ended afterwards."""
    others: list[OtherDevice] = []
    try:
        for device in devices:
            others.append(OtherDevice(options, device))
        yield others
    finally:
        for other in others:
            other.end()


def _serve(options: EvalOptions, connection: Connection) -> None:
    set_up_worker(0)  # it ends with its main process, even one that is killed
    subject = None
    while True:
        try:
            number, share = connection.recv()
        except EOFError:
            return
        try:
            subject = subject or load_subject(options)
            answer: dict[str, int] | FastclipError = encode_share(subject, share)
        except FastclipError as error:
            answer = error
        connection.send((number, answer))
