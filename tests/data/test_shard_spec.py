"""Shard specifications promise: the reference's expansion and sizes, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from open_clip_train import data as reference

from fastclip.data.shard_spec import (
    count_samples,
    data_kind,
    display,
    expand_shards,
    shard_name,
)
from fastclip.errors import DataError, InputMissing, UserError
from tests.data.shard_files import fresh_seed

FLAG = "--train-data"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_braces_and_sources_expand_as_in_the_reference(tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_ROOT", str(tmp_path))
    touch(tmp_path / "a-00.tar")
    for spec in (
        f"{tmp_path}/a-{{00..12}}.tar",
        f"{tmp_path}/a-{{00..03}}.tar::{tmp_path}/{{b,c}}-{{7..9}}.tar::pipe:cat x.tar",
        "${ROOT}/a-{00..01}.tar",
        f"{tmp_path}/a-00.tar::https://example.org/{{0..2}}.tar::s3://bucket/{{x,y}}.tar",
    ):
        assert list(expand_shards(spec, FLAG).urls) == reference.expand_urls(spec)[0]


def test_factors_weigh_every_shard_of_a_source_as_in_the_reference(tmp_path):
    touch(tmp_path / "a0.tar")
    spec = f"{tmp_path}/a{{0..4}}.tar::{tmp_path}/b.tar::{tmp_path}/c{{0..2}}.tar"
    urls, weights = reference.expand_urls(spec, "1::2::0.5")
    shards = expand_shards(spec, FLAG)
    assert list(shards.urls) == urls
    assert shards.weights((1.0, 2.0, 0.5)) == tuple(weights)
    with pytest.raises(UserError, match=r"has 2 numbers and --train-data has 3 sources"):
        shards.weights((1.0, 2.0))


def test_a_folder_is_its_archives_by_name(tmp_path):
    touch(*(tmp_path / name for name in ("b.tar", "a.tar.gz", "c.txt", "sizes.json", "a.tgz")))
    (tmp_path / "d.tar").mkdir()
    names = [Path(url).name for url in expand_shards(str(tmp_path), FLAG).urls]
    assert names == ["a.tar.gz", "a.tgz", "b.tar"]


def test_glob_characters_match_only_where_no_file_has_that_name(tmp_path):
    touch(tmp_path / "x1.tar", tmp_path / "x2.tar", tmp_path / "[x].tar")
    assert [Path(u).name for u in expand_shards(f"{tmp_path}/x*.tar", FLAG).urls] == [
        "x1.tar",
        "x2.tar",
    ]
    assert expand_shards(f"{tmp_path}/[x].tar", FLAG).urls == (f"{tmp_path}/[x].tar",)


def test_a_list_file_may_run_commands_only_when_allowed(tmp_path):
    touch(tmp_path / "a.tar")
    listed = tmp_path / "shards.txt"
    listed.write_text(f"# comment\n\n{tmp_path}/a.tar\npipe:cat {tmp_path}/b.tar\n")
    with pytest.raises(UserError, match=r"shards\.txt .*--allow-pipe-from-files"):
        expand_shards(str(listed), FLAG)
    urls = expand_shards(str(listed), FLAG, allow_pipe_from_files=True).urls
    assert urls == (f"{tmp_path}/a.tar", f"pipe:cat {tmp_path}/b.tar")
    # typed on the command line it needs no permission
    assert expand_shards("pipe:cat x.tar", FLAG).urls == ("pipe:cat x.tar",)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("{tmp}/no-{0..3}.tar", InputMissing, r"--train-data .*no-0.tar \(and 3 more\): no such"),
        ("{tmp}/no.tar", InputMissing, r"--train-data .*/no\.tar: no such file"),
        ("{tmp}/empty", InputMissing, "the folder holds no shards"),
        ("{tmp}/*.tar", InputMissing, "no file matches"),
        ("{tmp}/a.tar::", UserError, "one side of `::`"),
        ("${UNSET_HERE}/a.tar", UserError, "WDS_UNSET_HERE"),
        ("{tmp}/a{0..3.tar", UserError, "[Uu]nbalanced"),
    ],
)
def test_what_cannot_be_expanded_is_one_clear_line(tmp_path, spec, error, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=words) as caught:
        expand_shards(spec.replace("{tmp}", str(tmp_path)), FLAG)
    assert "\n" not in str(caught.value)


def test_one_missing_shard_among_present_ones_is_left_to_the_reader(tmp_path):
    touch(tmp_path / "0001.tar")
    assert len(expand_shards(f"{tmp_path}/{{0000..0002}}.tar", FLAG).urls) == 3


def test_auto_finds_what_the_reference_finds(tmp_path):
    kinds = {reference.get_csv_dataset: "csv", reference.get_wds_dataset: "webdataset"}
    for spec in ("a.csv", "b.tsv", "c.tar", "x/{0..9}.tar", "a.tar::b.csv", "http://h/a.tar"):
        assert data_kind(spec, "auto", FLAG) == kinds[reference.get_dataset_fn(spec, "auto")]
    for kind in ("csv", "webdataset", "synthetic"):
        assert data_kind("whatever", kind, FLAG) == kind
    for ours in (str(tmp_path), "a.tar.gz", "pipe:cat a.tar -", f"a.tar::{tmp_path}"):
        assert data_kind(ours, "auto", FLAG) == "webdataset"
    with pytest.raises(UserError, match=r"--train-data a\.parquet: .*--dataset-type webdataset"):
        data_kind("a.parquet", "auto", FLAG)


def test_sizes_are_the_references_wherever_it_finds_any(tmp_path):
    rng = random.Random(fresh_seed())
    for case in range(40):
        root = tmp_path / str(case)
        specs = []
        for source in range(rng.randint(1, 3)):
            folder = root / f"s{source}"
            folder.mkdir(parents=True)
            shards = [f"{source}-{i}.tar" for i in range(rng.randint(1, 4))]
            touch(*(folder / shard for shard in shards))
            specs.append(f"{folder}/{source}-{{0..{len(shards) - 1}}}.tar")
            kind = rng.choice(["sizes", "all", "len", "none"])
            if kind in ("sizes", "all"):
                names = (
                    shards
                    if kind == "sizes"
                    else [f"{s}-{i}.tar" for s in range(3) for i in range(4)]
                )
                sizes = {
                    name: rng.choice([rng.randint(1, 99), str(rng.randint(1, 99))])
                    for name in names
                }
                (folder / "sizes.json").write_text(json.dumps(sizes))
            elif kind == "len":
                (folder / "__len__").write_text(f"{rng.randint(1, 999)}\n")
        spec = "::".join(specs)
        try:
            expected, shards_expected = reference.get_dataset_size(spec)
        except KeyError:
            expected = None  # a shard of another folder: we look beside that shard
        urls = expand_shards(spec, FLAG).urls
        if expected is not None:
            assert count_samples(urls, FLAG) == expected, spec
            assert len(urls) == shards_expected
        else:
            by_folder = [Path(url).parent for url in urls]
            if all(not any((f / n).exists() for n in ("sizes.json", "__len__")) for f in by_folder):
                assert count_samples(urls, FLAG) is None


def test_each_shard_is_looked_up_beside_itself_where_the_first_folder_does_not_know_it(tmp_path):
    touch(tmp_path / "a/0.tar", tmp_path / "b/1.tar", tmp_path / "c/2.tar", tmp_path / "c/3.tar")
    (tmp_path / "a/sizes.json").write_text('{"0.tar": 10}')
    (tmp_path / "b/sizes.json").write_text('{"1.tar": 200}')
    (tmp_path / "c/__len__").write_text("3000")
    urls = expand_shards(f"{tmp_path}/a/0.tar::{tmp_path}/b/1.tar::{tmp_path}/c", FLAG).urls
    assert count_samples(urls, FLAG) == 3210
    (tmp_path / "c/__len__").unlink()
    assert count_samples(urls, FLAG) is None
    (tmp_path / "c/sizes.json").write_text('{"2.tar": 1}')
    with pytest.raises(DataError, match=r"no entry for 3\.tar"):
        count_samples(urls, FLAG)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sizes.json", "{", "cannot be read as JSON"),
        ("sizes.json", "[1]", "must be an object"),
        ("sizes.json", '{"0.tar": "many"}', "is no number"),
        ("sizes.json", '{"0.tar": null}', "is no number"),
        ("__len__", "__import__('os')", "must hold one whole number"),
    ],
)
def test_broken_size_files_are_one_clear_line(tmp_path, name, content, words):
    touch(tmp_path / "0.tar")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        count_samples((f"{tmp_path}/0.tar",), FLAG)


def test_names_and_secrets():
    assert shard_name("/data/x/0007.tar") == "0007.tar"
    assert shard_name("https://h/p/0007.tar?sig=abc/def") == "0007.tar"
    assert shard_name("pipe:aws s3 cp s3://b/0007.tar - | cat") == "0007.tar"
    shown = display("pipe:curl https://me:secret@host/a.tar?token=hidden | cat")
    assert "secret" not in shown
    assert "hidden" not in shown
    assert "host/a.tar" in shown
