"""`fastclip export`: write, open again, compare, and only then give the folder its name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fastclip.config.train_config import ModelConfig
from fastclip.errors import DataError, InputMissing
from fastclip.export.model_card import Evaluation, model_card
from fastclip.export.open_clip_folder import write_open_clip
from fastclip.export.run_record import RunRecord
from fastclip.export.source import Source, load_source
from fastclip.export.transformers_folder import check_is_clip_model, write_transformers
from fastclip.export.verify import Expected, check_open_clip, check_transformers, expect
from fastclip.export.whole_folder import whole_folder, writing

logger = logging.getLogger(__name__)

Target = Literal["open_clip", "transformers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    model: ModelConfig
    checkpoint: Path
    to: Target
    out: Path
    title: str
    run: RunRecord | None  # of the training, for the model card
    results: tuple[Path, ...] = ()  # JSON of evaluations, for the model card


class _Format(NamedTuple):
    accepts: Callable[[Source], None]
    write: Callable[[Source, Path], None]
    check: Callable[[Source, Expected, Path], list[str]]


_FORMATS: dict[Target, _Format] = {
    "open_clip": _Format(lambda source: None, write_open_clip, check_open_clip),
    "transformers": _Format(check_is_clip_model, write_transformers, check_transformers),
}


def export(config: ExportConfig) -> list[str]:
    """Write `config.out`; lines that say what was checked. Any FastclipError leaves nothing behind."""
    form = _FORMATS[config.to]
    evaluations = [found for path in config.results for found in read_results(path)]
    with whole_folder(config.out) as folder:
        source = load_source(config.model, config.checkpoint)
        form.accepts(source)
        expected = expect(source)
        with writing(config.out):
            form.write(source, folder)
            card = model_card(source, config.to, config.title, config.run, evaluations)
            (folder / "README.md").write_text(card, encoding="utf-8")
        lines = form.check(source, expected, folder)
    return lines


def read_results(path: Path) -> Sequence[Evaluation]:
    """Evaluations in a JSON file: an object, or a list of such, with `dataset` and `metrics`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissing(f"--results {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"--results {path}: not JSON: {error}") from error
    found = []
    for entry in content if isinstance(content, list) else [content]:
        metrics = entry.get("metrics") if isinstance(entry, dict) else None
        if not isinstance(metrics, dict) or "dataset" not in entry:
            raise DataError(f"--results {path}: an entry without 'dataset' and 'metrics'")
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        found.append(Evaluation(str(entry["dataset"]), numbers))
    return found
