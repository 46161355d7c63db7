"""The sets that DataComp's tool leaves as Arrow files, read with the real pyarrow, figures by hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fastclip.benchmark.suite_sets import datacomp_sets
from tests.benchmark import by_hand, miniature

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-clip-benchmark/bin/python"
WRITE = """
import json, sys, pyarrow as pa
for path, rows in json.load(sys.stdin).items():
    def load(value):
        if isinstance(value, dict):
            return {"bytes": bytes.fromhex(value["hex"]) if "hex" in value else None, "path": value.get("path")}
        return [load(v) for v in value] if isinstance(value, list) else value
    table = pa.Table.from_pylist([{k: load(v) for k, v in row.items()} for row in rows])
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
"""


@pytest.mark.slow
def test_retrieval_and_associations(hub, reference, rng, tmp_path):
    subprocess.run([ROOT / "scripts/clip_benchmark_env.sh"], check=True)
    files: dict[str, list[dict[str, object]]] = {}
    root = tmp_path / "root"
    minis = {}
    for of in datacomp_sets():
        if of.task not in ("retrieval", "winogavil"):
            continue
        folder = root / of.folder / "TEST/1.1.0/0123abcd"
        folder.mkdir(parents=True)
        name = of.key.partition("/")[2]
        rows: list[dict[str, object]] = []
        if of.task == "retrieval":
            minis[of.key] = mini = miniature.captioned(tmp_path / name, rng)
            for number, (image, some) in enumerate(zip(mini.images, mini.captions, strict=True)):
                data = miniature.encoded(image)
                loose = tmp_path / f"{name}-{number}.png"
                loose.write_bytes(data)
                # `datasets` keeps either the bytes or the path of a file in its cache
                shown = {"hex": data.hex()} if number % 3 else {"path": str(loose)}
                rows.append({"image": shown, "caption": some, "img_id": str(number)})
        else:
            riddles = []
            for cue, count in (("owl", 5), ("map", 10), ("Drum", 12), ("kite", 12)):
                images = [miniature.picture(rng) for _ in range(count)]
                right = set(rng.choice(count, 3, replace=False).tolist())
                riddles.append((cue, images, right))
                names = [f"{cue}{n}" for n in range(count)]
                rows.append(
                    {
                        "candidates": names,
                        "candidate_images": [{"hex": miniature.encoded(i).hex()} for i in images],
                        "cue": cue,
                        "associations": [names[n] for n in sorted(right)],
                    }
                )
        files[str(folder / f"{name}-test.arrow")] = rows
    subprocess.run([PYTHON, "-c", WRITE], input=json.dumps(files), text=True, check=True)

    out = tmp_path / "out"
    flags = f"-m fastclip eval --suite datacomp --data-root {root} --checkpoint {hub} --out {out} --workers 0"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([PYTHON, *flags.split()], env=environment, check=True)
    for key, mini in minis.items():
        got = json.loads((out / f"{key.replace('/', '_')}.json").read_text())["metrics"]
        captions = [list(reference.texts(some)) for some in mini.captions]
        of_text, of_image = by_hand.recalls(reference.images(mini.images), captions, 1)
        assert got["mean_recall@1"] == pytest.approx((of_text + of_image) / 2)
    scores = []
    for cue, images, right in riddles:
        sentence = f"{'An' if cue == 'owl' else 'A'} {cue.lower()}"
        products = reference.images(images) @ reference.texts([sentence])[0]
        scores.append(by_hand.jaccard(products.tolist(), right))
    got = json.loads((out / "misc_winogavil.json").read_text())["metrics"]
    assert got["jaccard_score_10-12"] == pytest.approx(by_hand.mean(scores[1:]))
    assert got["avg_jaccard_score"] == pytest.approx(by_hand.mean(scores))
