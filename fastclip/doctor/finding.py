"""What a check says: one finding a line, in sections; docs/doctor.md documents the JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastclip import __version__
from fastclip.errors import ExitCode

# ok: as it should be. slower: works, and something would be faster. missing: not there, and something would use it.
# broken: there, and does not work.
Verdict = Literal["ok", "slower", "missing", "broken"]

SCHEMA = 1  # of the JSON form; rises when a field changes its meaning or goes


@dataclass(frozen=True, slots=True)
class Finding:
    name: str  # stays from version to version, for scripts
    verdict: Verdict
    found: str  # one line
    advice: str = ""  # one line: what to do; empty where nothing need be done
    # how `fastclip train` with these flags would end because of it
    status: ExitCode = ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Report:
    sections: Mapping[str, Sequence[Finding]]  # by title, in the order of printing

    @property
    def findings(self) -> list[Finding]:
        return [finding for section in self.sections.values() for finding in section]

    @property
    def status(self) -> ExitCode:
        """69 where the machine lacks what the flags need, else the first other reason why they would not run."""
        failing = [finding.status for finding in self.findings if finding.status]
        if ExitCode.ENVIRONMENT in failing:
            return ExitCode.ENVIRONMENT
        return failing[0] if failing else ExitCode.DONE

    def as_json(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers; paste it anywhere: it holds no environment but what is judged."""
        return {
            "schema": SCHEMA,
            "fastclip": __version__,
            "status": int(self.status),
            "sections": [
                {
                    "title": title,
                    "findings": [{**asdict(f), "status": int(f.status)} for f in findings],
                }
                for title, findings in self.sections.items()
            ],
        }

    def text(self) -> str:
        lines = []
        for title, findings in self.sections.items():
            lines += [title, *(line for finding in findings for line in _lines(finding)), ""]
        return "\n".join([*lines, *self._summary()])

    def _summary(self) -> list[str]:
        verdicts = [finding.verdict for finding in self.findings]
        counts = ", ".join(
            f"{verdicts.count(verdict)} {verdict}"
            for verdict in ("ok", "slower", "missing", "broken")
        )
        if not self.status:
            return [f"{counts}. Nothing that these flags need is missing."]
        causes = ", ".join(finding.name for finding in self.findings if finding.status)
        return [f"{counts}. These flags would not run here (status {int(self.status)}): {causes}"]


def _lines(finding: Finding) -> list[str]:
    mark = "!" if finding.status else " "
    lines = [f" {mark} {finding.verdict:<8} {finding.name:<18} {finding.found}"]
    return [*lines, f"{'':<12}  -> {finding.advice}"] if finding.advice else lines
