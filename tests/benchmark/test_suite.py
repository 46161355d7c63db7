"""A miniature of each of DataComp's data sets runs through, with the figures one gets by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fastclip.benchmark.suite_sets import NUM_AVERAGED, datacomp_sets
from fastclip.benchmark.suite_tasks import TASKS
from fastclip.cli.main import main
from tests.benchmark import by_hand, miniature
from tests.benchmark.miniature import Mini
from tests.benchmark.tiny_hub import Reference

FACE_CLASSES = {
    "race": ["Black", "White", "Indian", "Asian"],
    "gender": ["male", "female"],
    "age": ["young", "grown", "old"],
    "toxic": [*(f"face {i}" for i in range(14)), "ape", "cow", "dog", "rat", "thief", "crook"],
}
# Values of each metadata field of a miniature
FIELDS = {
    "iwildcam": [3] * 9,
    "camelyon17": [2, 3, 2],
    "fmow": [6, 3, 4],
    "dollar_street": [4, 4, 3],
    "geode": [3, 5],
    "faces": [3, 2, 4, 2],  # age, gender, race, race_binary
}
RETRIEVAL = [of for of in datacomp_sets() if of.task == "retrieval"]


def write(root: Path, rng: np.random.Generator) -> dict[str, Mini]:
    """Every set but WinoGAViL, which exists as Arrow files only."""
    minis = {}
    for of in datacomp_sets():
        if of.task == "retrieval":
            folder = root / f"wds_{of.key.replace('/', '-')}_test"
            minis[of.key] = miniature.captioned(folder, rng)
        elif of.task == "faces":
            names = [f"{q}:{name}" for q, some in FACE_CLASSES.items() for name in some]
            templates = [f"{q}:a {q} photo of a {{c}}" for q in FACE_CLASSES]
            minis[of.key] = miniature.labelled(
                root / of.folder,
                rng,
                count=17,
                metadata=FIELDS["faces"],
                names=names,
                templates=templates,
            )
        elif of.task != "winogavil":
            classes = min(of.classes or 7, 7)
            fields = FIELDS.get(of.task)
            minis[of.key] = miniature.labelled(
                root / of.folder, rng, classes=classes, metadata=fields
            )
    return minis


@pytest.fixture(scope="module")
def outcome(
    hub: Path, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Mini], Path]:
    seed = int(np.random.SeedSequence().entropy) % 2**31  # type: ignore[arg-type]
    print(f"seed {seed}")
    root, out = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("out") / "results"
    minis = write(root, np.random.default_rng(seed))
    assert main(words(hub, root, out)) == 0
    return root, minis, out


def words(hub: Path, root: Path, out: Path) -> list[str]:
    flags = f"eval --suite datacomp --data-root {root} --checkpoint {hub} --out {out} --workers 0"
    return flags.split()


def metrics_of(out: Path, slug: str) -> dict[str, Any]:
    return json.loads((out / f"{slug}.json").read_text())["metrics"]


def test_the_table_is_datacomp_s():
    sets = datacomp_sets()
    assert len(sets) == 40
    assert sum(of.main_metric is not None for of in sets) == NUM_AVERAGED == 38
    assert len({of.name for of in sets}) == len({of.folder for of in sets}) == 40
    assert all(of.task in TASKS and of.source.startswith("https://") for of in sets)
    other = {of.name: of.main_metric for of in sets if of.main_metric not in (None, "acc1")}
    assert other == {
        "Caltech-101": "mean_per_class_recall",
        "FGVC Aircraft": "mean_per_class_recall",
        "Oxford Flowers-102": "mean_per_class_recall",
        "Oxford-IIIT Pet": "mean_per_class_recall",
        "Flickr": "mean_recall@1",
        "MSCOCO": "mean_recall@1",
        "WinoGAViL": "jaccard_score_10-12",
        "iWildCam": "F1-macro_all",
        "FMoW": "acc_worst_region",
        "Dollar Street": "acc_top5_wg",
        "GeoDE": "acc_wg",
    }


def answers(reference: Reference, mini: Mini) -> list[list[int]]:
    classifier = reference.classifier(mini.names, mini.templates)
    return by_hand.top_classes(reference.images(mini.images), classifier)


def test_classification_by_hand(outcome, reference):
    _, minis, out = outcome
    seen: set[int] = set()
    for of in datacomp_sets():
        if of.task in ("retrieval", "faces", "winogavil"):
            continue
        mini = minis[of.key]
        tops = answers(reference, mini)
        seen |= {top[0] for top in tops}
        expected = by_hand.classification(tops, mini.labels)
        got = metrics_of(out, of.slug)
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-9), of.name
    assert len(seen) > 2  # a model that answers the same to all would prove nothing


def column(mini: Mini, index: int) -> list[int]:
    return [row[index] for row in mini.metadata]


def fmow(mini: Mini, tops: list[list[int]], right: list[bool]) -> dict[str, float]:
    return {
        "acc_worst_region": min(by_hand.by_group(right, column(mini, 0)).values()),
        "acc_worst_year": min(by_hand.by_group(right, column(mini, 1)).values()),
    }


def dollar_street(mini: Mini, tops: list[list[int]], right: list[bool]) -> dict[str, float]:
    top5 = [label in top[:5] for top, label in zip(tops, mini.labels, strict=True)]
    return {"acc_top5_wg": min(by_hand.by_group(top5, column(mini, 0)).values())}


def geode(mini: Mini, tops: list[list[int]], right: list[bool]) -> dict[str, float]:
    groups = by_hand.by_group(right, column(mini, 0))
    return {"acc_wg": min(groups.values()), **{f"acc_region:{g}": v for g, v in groups.items()}}


def camelyon(mini: Mini, tops: list[list[int]], right: list[bool]) -> dict[str, float]:
    return {
        "acc_avg": by_hand.mean(right),
        "acc_wg": min(by_hand.by_group(right, column(mini, 1)).values()),
    }


def iwildcam(mini: Mini, tops: list[list[int]], right: list[bool]) -> dict[str, float]:
    return {
        "F1-macro_all": by_hand.f1_macro([top[0] for top in tops], mini.labels),
        "recall-macro_all": by_hand.classification(tops, mini.labels)["mean_per_class_recall"] or 0,
    }


@pytest.mark.parametrize(
    ("key", "work_out"),
    [
        ("wilds/fmow", fmow),
        ("wilds/camelyon17", camelyon),
        ("wilds/iwildcam", iwildcam),
        ("fairness/dollar_street", dollar_street),
        ("fairness/geode", geode),
    ],
)
def test_groups_by_hand(outcome, reference, key: str, work_out: Callable[..., dict[str, float]]):
    _, minis, out = outcome
    mini = minis[key]
    tops = answers(reference, mini)
    right = [top[0] == label for top, label in zip(tops, mini.labels, strict=True)]
    expected = work_out(mini, tops, right)
    got = metrics_of(out, key.replace("/", "_"))
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_faces_by_hand(outcome, reference):
    _, minis, out = outcome
    for key in ("fairness/fairface", "fairness/utkface"):
        mini = minis[key]
        images: Tensor = reference.images(mini.images)
        best = {
            q: [
                t[0]
                for t in by_hand.top_classes(
                    images, reference.classifier(names, [f"a {q} photo of a {{c}}"])
                )
            ]
            for q, names in FACE_CLASSES.items()
        }
        age, gender, race, binary = (column(mini, i) for i in range(4))
        gender_right = [a == b for a, b in zip(best["gender"], gender, strict=True)]
        got = metrics_of(out, key.replace("/", "_"))
        pairs = list(zip(gender, race, strict=True))
        expected = {
            "acc_race_avg": by_hand.mean(
                [(r != 1) == b for r, b in zip(best["race"], binary, strict=True)]
            ),
            "acc_age_avg": by_hand.mean([a == b for a, b in zip(best["age"], age, strict=True)]),
            "acc_gender_wg": min(by_hand.by_group(gender_right, binary).values()),
            "acc_gender_x_wg": min(by_hand.by_group(gender_right, pairs).values()),
            "toxicity_crime_avg": by_hand.mean([t >= 18 for t in best["toxic"]]),
            "toxicity_nonhuman_avg": by_hand.mean([14 <= t < 18 for t in best["toxic"]]),
            f"acc_gender_x_gender:{pairs[0][0]}_race:{pairs[0][1]}": by_hand.by_group(
                gender_right, pairs
            )[pairs[0]],
        }
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_retrieval_by_hand(outcome, reference):
    _, minis, out = outcome
    for of in RETRIEVAL:
        mini = minis[of.key]
        captions = [list(reference.texts(some)) for some in mini.captions]
        got = metrics_of(out, of.slug)
        for k in (1, 5, 10):
            of_text, of_image = by_hand.recalls(reference.images(mini.images), captions, k)
            assert got[f"image_retrieval_recall@{k}"] == pytest.approx(of_text)
            assert got[f"text_retrieval_recall@{k}"] == pytest.approx(of_image)
        both = got["image_retrieval_recall@1"] + got["text_retrieval_recall@1"]
        assert got["mean_recall@1"] == pytest.approx(both / 2)


def test_what_is_missing_is_named_and_no_average_claimed(outcome):
    _, _, out = outcome
    table = (out / "results.md").read_text()
    assert "Not evaluated: 1 of 40" in table
    assert "| WinoGAViL" in table
    assert "37 of 38" in table
    lines = [json.loads(line) for line in (out / "eval_results.jsonl").read_text().splitlines()]
    mains = {line["dataset"]: line["metrics"]["main_metric"] for line in lines}
    assert len(mains) == 39
    assert mains["FairFace"] is None
    assert mains["GeoDE"] == metrics_of(out, "fairness_geode")["acc_wg"]


def test_finished_sets_are_not_done_again(outcome, hub, capsys, monkeypatch):
    root, _, out = outcome
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*_*.json")}
    (out / "mnist.json").unlink()

    def only_mnist(self: object, index: int, turn: str, notes: object) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr("fastclip.data.placed_pictures.PlacedPictures.sample", only_mnist)
    with pytest.raises(AssertionError, match="a picture was read"):
        raise_through(words(hub, root, out))
    monkeypatch.undo()
    assert main(words(hub, root, out)) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*_*.json")}
    assert after == before


def raise_through(argv: list[str]) -> None:
    from fastclip.benchmark.suite import evaluate_suite
    from fastclip.config.eval_options import EvalOptions

    value = dict(zip(argv[1::2], argv[2::2], strict=True))
    evaluate_suite(
        EvalOptions(
            suite="datacomp",
            data_root=value["--data-root"],
            checkpoint=value["--checkpoint"],
            out=value["--out"],
            workers=0,
        ),
        lambda text: None,
    )


def test_an_empty_root_is_one_line(hub, tmp_path, capsys):
    assert main(words(hub, tmp_path, tmp_path / "out")) == 66
    error = capsys.readouterr().err
    assert "none of the 40 data sets" in error
    assert error.count("\n") == 1
