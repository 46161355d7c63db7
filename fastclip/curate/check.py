"""`fastclip data check`: reads shards as training does, and says what training would make of them."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fastclip.curate import plots, report
from fastclip.curate.findings import Findings, RunShape
from fastclip.curate.ordered_pool import map_in_order
from fastclip.curate.scan import scan_shard, shard_of
from fastclip.curate.whole_file import whole_file, writable_folder, write_json
from fastclip.data.shard_spec import display, expand_shards, is_local, shard_name
from fastclip.errors import DataError, UserError

REPORT, PAGE, BAD, PLOTS, SIZES = (
    "data_check.json",
    "data_check.md",
    "data_check.bad.jsonl",
    "data_check.png",
    "sizes.json",
)


@dataclass(frozen=True, slots=True)
class CheckConfig:
    shards: str  # as --train-data
    out: Path | None  # None: the folder of the shards
    decode: bool
    processes: int
    max_bad_fraction: float
    allow_pipe_from_files: bool
    run: RunShape


def check(config: CheckConfig) -> list[str]:
    """Read everything, write the files, return the sentences of the summary.

    Raises DataError, once all is written, where nothing is usable or too much is bad; UserError, InputMissing,
    CannotWrite and EnvironmentProblem.
    """
    name = f"data check {display(config.shards)}"
    urls = expand_shards(
        config.shards, "data check", allow_pipe_from_files=config.allow_pipe_from_files
    ).urls
    urls = tuple(dict.fromkeys(urls))  # a shard that is named twice is read once
    out = writable_folder(_folder_of(urls) if config.out is None else config.out)
    findings = Findings(config.decode)
    scan = functools.partial(scan_shard, decode=config.decode)
    with (
        whole_file(out / BAD) as bad,
        tqdm(total=len(urls), desc="shards", unit="shard", disable=None) as bar,
    ):
        for result in map_in_order(scan, urls, config.processes):
            findings.add(result)
            for event in result.events:
                shard, key = shard_of(event, result.url)
                line = {"shard": shard, "key": key, "cause": event.cause, "reason": event.detail}
                bad.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            bar.update()
            bar.set_postfix(samples=findings.usable, bad=findings.dropped, refresh=False)
    found = findings.as_json(config.run)
    no_plots = plots.draw(findings.samples, out / PLOTS)
    write_json(out / REPORT, found)
    with whole_file(out / PAGE) as page:
        text = report.markdown(
            display(config.shards), found, findings.examples, PLOTS if no_plots is None else None
        )
        page.write(text.encode())
    said = [*report.summary(found), *_causes(findings.causes), _write_sizes(findings.sizes, out)]
    said.append(f"report: {out / PAGE}, {REPORT}; every bad member: {BAD}")
    if no_plots is not None:
        said.append(f"no plots: {no_plots}")
    _judge(findings, name, config.max_bad_fraction, said)
    return said


def _folder_of(urls: tuple[str, ...]) -> Path:
    folders = {str(Path(url).parent) if is_local(url) else "" for url in urls}
    if len(folders) != 1 or "" in folders:
        raise UserError("data check: the shards are not all in one local folder: say --out FOLDER")
    return Path(folders.pop())


def _causes(causes: Counter[str]) -> list[str]:
    return [f"{cause}: {count:,}" for cause, count in causes.most_common()]


def _write_sizes(sizes: dict[str, int], out: Path) -> str:
    """OpenCLIP's sizes.json, which has file names without folders; says what became of it."""
    by_name = {shard_name(url): count for url, count in sizes.items()}
    if len(by_name) < len(sizes):
        return f"no {SIZES}: shards of different folders have the same name"
    write_json(out / SIZES, by_name)
    return f"{SIZES}: usable samples of each shard, in {out}"


def _judge(findings: Findings, name: str, most: float, said: list[str]) -> None:
    if not findings.usable:
        raise DataError("\n".join([*said, f"{name}: not one usable sample"]))
    if findings.bad_fraction > most:
        raise DataError(
            "\n".join(
                [
                    *said,
                    f"{name}: {findings.bad_fraction:.2%} is bad, more than --max-bad-fraction {most:g}",
                ]
            )
        )
