"""Questions put to the trainer's own functions; whatever they raise becomes a finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastclip.doctor.barred import Barred
from fastclip.doctor.finding import Finding, Verdict
from fastclip.errors import EnvironmentProblem, ExitCode, FastclipError, InputMissing


class Answer(NamedTuple):
    found: str
    verdict: Verdict = "ok"
    advice: str = ""
    value: Any = None  # what the trainer would go on with


class Asking:
    """Collects one finding a question. An import that `barred` refused would have ended the trainer itself."""

    def __init__(self, barred: Barred) -> None:
        self.findings: list[Finding] = []
        self._barred = barred

    def __call__(self, name: str, question: Callable[[], Answer]) -> Any:
        """The answer's value; None where there was none."""
        before = set(self._barred.wanted)
        try:
            answer = question()
        except FastclipError as error:
            self.findings.append(_refused(name, error))
            return None
        except Exception as error:  # the trainer would end with this one's traceback
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.findings.append(Finding(name, "broken", text[:300], status=ExitCode.BUG))
            return None
        fatal = sorted(self._barred.wanted - before)
        if fatal:
            self.findings.append(
                Finding(
                    name,
                    "broken",
                    f"the trainer would import {fatal[0]} to choose, which ends Python",
                    f"pip uninstall {fatal[0].split('.')[0].replace('_', '-')}",
                    ExitCode.ENVIRONMENT,
                )
            )
            return answer.value
        self.findings.append(Finding(name, answer.verdict, answer.found, answer.advice))
        return answer.value


def _refused(name: str, error: FastclipError) -> Finding:
    """The trainer's one line; what follows its last `; ` is the remedy."""
    missing = isinstance(error, (EnvironmentProblem, InputMissing))
    what, semicolon, remedy = " ".join(str(error).split()).rpartition("; ")
    found, advice = (what, remedy) if semicolon else (remedy, "")
    return Finding(name, "missing" if missing else "broken", found, advice, error.exit_code)
