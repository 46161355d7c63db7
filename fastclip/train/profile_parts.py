"""From a profiler's events to milliseconds a step, by part of the step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch.profiler import record_function

Part = Literal["data wait", "image tower", "text tower", "teacher", "loss", "backward", "optimizer"]
ALL_REDUCE, OTHER = "all-reduce", "other"
_PREFIX = "fastclip: "  # of the ranges in the trace
_STEP = "ProfilerStep"
# torch's ranges around a collective on the host, and NCCL's kernels
_REDUCTION = re.compile(
    r"(gloo|nccl):_?all_?reduce|ncclDevKernel_AllReduce|ncclKernel_AllReduce", re.I
)


@contextmanager
def part(name: Part) -> Iterator[None]:
    """What runs within belongs to `name`; a part within another is not counted in the outer one."""
    with record_function(_PREFIX + name):
        yield


@dataclass(frozen=True, slots=True)
class PartTime:
    """Milliseconds a step. A GPU works on what the host launched earlier, so the two columns do not run in step."""

    name: str
    host_ms: float  # of the thread that trains
    device_ms: float | None  # of kernels launched meanwhile, by any thread; None on a CPU


@dataclass(frozen=True, slots=True)
class StepProfile:
    steps: int
    step_ms: float  # mean wall time of one, of the thread that trains
    # they add up to `step_ms`, all-reduce apart: that overlaps backward
    parts: tuple[PartTime, ...]

    def as_json(self) -> str:
        return json.dumps({"schema": 1, **asdict(self)}, indent=2) + "\n"

    def table(self) -> str:
        on_gpu = self.parts[0].device_ms is not None
        lines = [f"{'part':<12} {'host ms':>9} {'share':>7}{'  device ms' if on_gpu else ''}"]
        for each in self.parts:
            share = f"{100 * each.host_ms / self.step_ms:.1f}%" if each.name != ALL_REDUCE else "*"
            device = "" if each.device_ms is None else f"  {each.device_ms:>9.2f}"
            lines.append(f"{each.name:<12} {each.host_ms:>9.2f} {share:>7}{device}")
        lines.append(f"{'step':<12} {self.step_ms:>9.2f}")
        if any(each.name == ALL_REDUCE for each in self.parts):
            lines.append("* beside the other parts, mostly backward: in other threads or streams")
        return "\n".join(lines)


@dataclass(slots=True)
class _Span:
    """A range of the thread that trains, with the time of ranges within it taken out of `own`."""

    name: str
    start: float
    end: float
    own: float
    device: float = 0.0


def summarise(events: Iterable[Any], *, on_gpu: bool) -> StepProfile:
    """Of torch.profiler's `events()`: times in microseconds, kernels listed with the event that launched them."""
    events = list(events)
    steps = [e for e in events if e.name.startswith(_STEP) and _on_host(e)]
    spans = _spans([e for e in events if e.name.startswith(_PREFIX) and _on_host(e)])
    reduction_host = reduction_device = 0.0
    rest = 0.0
    for event in filter(_on_host, events):
        if _REDUCTION.search(event.name):
            reduction_host += event.time_range.elapsed_us()
        for kernel in event.kernels:
            if _REDUCTION.search(kernel.name):
                reduction_device += kernel.duration
                continue
            span = _innermost(spans, event.time_range.start)
            if span is None:
                rest += kernel.duration
            else:
                span.device += kernel.duration
    count = max(1, len(steps))
    wall = sum(step.time_range.elapsed_us() for step in steps)

    def time(name: str, host: float, device: float) -> PartTime:
        return PartTime(name, host / count / 1e3, device / count / 1e3 if on_gpu else None)

    parts = [
        time(
            name,
            sum(s.own for s in spans if s.name == name),
            sum(s.device for s in spans if s.name == name),
        )
        for name in get_args(Part)
        if any(s.name == name for s in spans)
    ]
    parts.append(time(OTHER, wall - sum(span.own for span in spans), rest))
    if reduction_host or reduction_device:
        parts.append(time(ALL_REDUCE, reduction_host, reduction_device))
    return StepProfile(len(steps), wall / count / 1e3, tuple(parts))


def _on_host(event: Any) -> bool:
    return event.device_type.name == "CPU"


def _spans(events: Sequence[Any]) -> list[_Span]:
    spans: list[_Span] = []
    open_spans: list[_Span] = []
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):
        start, end = event.time_range.start, event.time_range.end
        span = _Span(event.name.removeprefix(_PREFIX), start, end, end - start)
        while open_spans and open_spans[-1].end <= start:
            open_spans.pop()
        if open_spans:
            open_spans[-1].own -= span.own
        open_spans.append(span)
        spans.append(span)
    return spans


def _innermost(spans: Sequence[_Span], moment: float) -> _Span | None:
    """The shortest span that holds `moment`; spans are few, one step's worth of a dozen each."""
    around = [span for span in spans if span.start <= moment < span.end]
    return min(around, key=lambda span: span.end - span.start) if around else None
