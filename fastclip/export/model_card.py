"""README.md of an exported folder, in the Hub's form; what nobody recorded is marked to be filled in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastclip import __version__
from fastclip.config.parse import parse_args
from fastclip.export.run_record import RunRecord
from fastclip.export.source import Source
from fastclip.model.model_config import schema_of

BLANK = "**[to fill in]**"
# Of the run's machine and folders, not of what was trained
_NOT_SHOWN = {
    *("logs", "name", "rank", "world_size", "device", "dist_url", "dist_backend", "remote_sync"),
    *("wandb_notes", "wandb_project_name", "report_to", "resume", "cache_dir", "debug"),
}
# user:password@ and ?token=... of an URL
_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|\?(?:(?!::)[^\s'\"])*")


class Evaluation(NamedTuple):
    """Metrics of one data set."""

    dataset: str
    metrics: Mapping[str, float]


def model_card(
    source: Source,
    to: str,
    title: str,
    run: RunRecord | None,
    evaluations: Sequence[Evaluation],
) -> str:
    """Markdown with YAML front matter."""
    parts = [
        _front_matter(to),
        f"# {title}",
        _summary(source),
        f"## How to get started\n\n{_get_started(to)}",
        f"## Training data\n\n{_training_data(source, run)}",
        f"## Training procedure\n\n{_procedure(source, run)}",
        f"## Evaluation\n\n{_evaluation(source, run, evaluations)}",
        f"## Limits\n\n{_limits(source, to)}",
        f"## Citation\n\n{_CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(to: str) -> str:
    return (
        "---\n"
        f"library_name: {to}\n"
        "pipeline_tag: zero-shot-image-classification\n"
        "tags:\n- clip\n- fastclip\n"
        "# license: to fill in, such as mit or cc-by-4.0\n"
        "---"
    )


def _summary(source: Source) -> str:
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    height, width = source.preprocess.size
    name = source.config.name
    rows = {
        "architecture": f"`{name}`" if schema_of(name) is None else "as configured in this folder",
        "parameters": f"{parameters / 1e6:.1f} million",
        "pictures": f"{height} x {width} pixels, {source.preprocess.interpolation}, "
        f"{source.preprocess.resize_mode}, mean {_numbers(source.preprocess.mean)}, "
        f"standard deviation {_numbers(source.preprocess.std)}",
        "texts": f"{source.tokenizer.context_length} tokens, "
        f"vocabulary of {source.tokenizer.vocab_size}",
        "developed by": BLANK,
        "intended use": BLANK,
    }
    text = "A CLIP model: pictures and texts as vectors of one space, compared by their cosine."
    return f"{text}\n\n{_table(('', ''), rows.items())}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _get_started(to: str) -> str:
    if to == "open_clip":
        code = (
            "import open_clip  # or: import fastclip as open_clip\n"
            "import torch\nfrom PIL import Image\n\n"
            'name = "local-dir:FOLDER"  # or "hf-hub:ORGANISATION/NAME" once it is there\n'
            "model, _, preprocess = open_clip.create_model_and_transforms(name)\n"
            "tokenizer = open_clip.get_tokenizer(name)\n"
            "model.eval()\n"
            "with torch.no_grad():\n"
            '    image = model.encode_image(preprocess(Image.open("cat.jpg"))[None], normalize=True)\n'
            '    texts = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)\n'
            "    print((model.logit_scale.exp() * image @ texts.T).softmax(dim=-1))"
        )
    else:
        code = (
            "import torch\nfrom PIL import Image\n"
            "from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer\n\n"
            'name = "FOLDER"  # or "ORGANISATION/NAME" once it is on the Hub\n'
            "model = CLIPModel.from_pretrained(name).eval()\n"
            "images = CLIPImageProcessor.from_pretrained(name)(\n"
            '    Image.open("cat.jpg"), return_tensors="pt"\n)\n'
            "texts = CLIPTokenizer.from_pretrained(name)(\n"
            '    ["a cat", "a dog"], padding=True, truncation=True, return_tensors="pt"\n)\n'
            "with torch.no_grad():\n"
            "    print(model(**images, **texts).logits_per_image.softmax(dim=-1))"
        )
    return f"```python\n{code}\n```"


def _training_data(source: Source, run: RunRecord | None) -> str:
    data = run.flags.get("train_data") if run else None
    named = f"`{redacted(data)}`" if data and data != "None" else BLANK
    step = run.last_step_of(source.epoch) if run else None
    seen = f"{step.epoch * step.samples_per_epoch + step.samples:,}" if step else BLANK
    rows = {
        "as given to `--train-data`": named,
        "samples seen": seen,
        "what it is, source, licence, filters": BLANK,
    }
    return _table(("", ""), rows.items())


def redacted(data: str) -> str:
    """Without what may be a secret in an URL."""
    return _SECRETS.sub("", data)


def _procedure(source: Source, run: RunRecord | None) -> str:
    flags = run.flags if run else {}
    step = run.last_step_of(source.epoch) if run else None
    rate = f"{run.samples_per_second:,.0f} samples/s" if run and run.samples_per_second else BLANK
    rows = {
        "precision": flags.get("precision", BLANK),
        "global batch size": _global_batch(flags),
        "epochs": _epochs(source, flags),
        "last logged loss": f"{step.loss:.5g}" if step else BLANK,
        "throughput, all devices, median": rate,
        "software and hardware": (run.software if run else None) or BLANK,
    }
    command = _command(flags) if flags else BLANK
    return f"{_table(('', ''), rows.items())}\n\nFlags:\n\n```\n{command}\n```"


def _epochs(source: Source, flags: Mapping[str, str]) -> str:
    planned = flags.get("epochs", BLANK)
    return planned if source.epoch is None else f"{source.epoch} of {planned}"


def _global_batch(flags: Mapping[str, str]) -> str:
    try:
        sizes = [int(flags[name]) for name in ("batch_size", "accum_freq", "world_size")]
    except (KeyError, ValueError):
        return BLANK
    return f"{sizes[0] * sizes[1] * sizes[2]:,}"


def _command(flags: Mapping[str, str]) -> str:
    """The flags that differ from what `fastclip train --model MODEL` has anyway."""
    defaults = vars(parse_args(["--model", flags.get("model", "")]))
    words = ["fastclip train"]
    for name, value in flags.items():
        differs = name == "model" or value != str(defaults.get(name, value))
        if name in _NOT_SHOWN or not differs:
            continue
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value == "True" else f"{flag} {shlex.quote(redacted(value))}")
    return " \\\n    ".join(words)


def _evaluation(source: Source, run: RunRecord | None, evaluations: Sequence[Evaluation]) -> str:
    found = list(evaluations)
    results = run.results_after(source.epoch) if run else {}
    metrics = {k: v for k, v in results.items() if k not in ("epoch", "num_samples")}
    if metrics:
        size = results.get("num_samples")
        what = f"held-out data of the run ({size:,.0f} pairs)" if size else "held-out data"
        found.insert(0, Evaluation(what, metrics))
    rows: list[tuple[str, ...]] = [
        (dataset, f"`{name}`", f"{value:.4f}")
        for dataset, metrics in found
        for name, value in metrics.items()
    ]
    return _table(("data", "metric", "value"), rows) if rows else BLANK


def _limits(source: Source, to: str) -> str:
    lines = [
        "- What the training data lacks or distorts, the model does too; nobody has measured how far, "
        f"unless it says so here: {BLANK}",
        f"- Texts are cut after {source.tokenizer.context_length} tokens, and languages that the "
        "training data lacks are not understood.",
        "- Scores are similarities. They are not calibrated, and say nothing about a picture that fits "
        "none of the texts. Evaluate on your own data before anything depends on them.",
    ]
    if to == "transformers":
        lines.append(
            "- The tokenizer does not mend HTML entities and broken encodings, which the training did."
        )
        if source.has_logit_bias:
            lines.append(
                "- Trained with SigLIP's loss, whose logit bias this format has no place for: take the "
                "softmax over texts, not the sigmoid."
            )
    return "\n".join(lines)


_CITATION = f"""{BLANK}

Trained with fastclip {__version__}, in the footsteps of

```bibtex
@inproceedings{{Radford2021LearningTV,
  title={{Learning Transferable Visual Models From Natural Language Supervision}},
  author={{Alec Radford and Jong Wook Kim and Chris Hallacy and Aditya Ramesh and Gabriel Goh and
    Sandhini Agarwal and Girish Sastry and Amanda Askell and Pamela Mishkin and Jack Clark and
    Gretchen Krueger and Ilya Sutskever}},
  booktitle={{ICML}},
  year={{2021}}
}}
@software{{ilharco_gabriel_2021_5143773,
  title={{OpenCLIP}},
  author={{Gabriel Ilharco and Mitchell Wortsman and Ross Wightman and Cade Gordon and others}},
  year={{2021}},
  doi={{10.5281/zenodo.5143773}}
}}
```"""


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
