"""Documents come out of every kind of file as they went in, and a bad file is named in one line."""

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_languages import source

from undo_probe.errors import UndoProbeError
from undo_probe.tasks.text import Shingles, documents, normal, state

TEXTS = ["One text, of a few words.", "Zwei Sätze. Mit Umlauten.", "세 번째 글은 한국어로 쓰였다."]
FINEWEB_EDU: dict[str, Any] = {
    "id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://example.org", "file_path": "s3://a.warc.gz",
    "language": "en", "language_score": 0.9, "token_count": 12, "score": 2.6, "int_score": 3,
}  # fmt: skip
FINEWEB_2: dict[str, Any] = {
    "id": "<urn:uuid:2>", "dump": "CC-MAIN-2024-10", "url": "https://example.org", "date": "2024-02-01T00:00:00Z",
    "file_path": "s3://a.warc.gz", "language": "kor", "language_score": 0.99, "language_script": "Hang",
    "minhash_cluster_size": 3, "top_langs": '{"kor_Hang_score": 0.99}',
}  # fmt: skip


def rows(**more: Any) -> str:
    return "\n".join(json.dumps({"text": text, **more}) for text in TEXTS)


@pytest.mark.parametrize("kind", ["txt", "md", "jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a" / "deep" / "folder"
    folder.mkdir(parents=True)
    if kind in ("txt", "md"):
        for number, text in enumerate(TEXTS):
            (folder / f"{number}.{kind}").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    elif kind == "parquet":
        pd.DataFrame({"text": TEXTS, "id": [1, 2, 3]}).to_parquet(folder / "x.parquet")
    else:
        data = rows(id=3).encode()
        (folder / f"x.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    found = list(documents(source(path="a"), str(tmp_path)))
    assert sorted(found) == sorted(TEXTS)


def test_a_path_is_a_folder_a_file_or_a_glob_and_order_says_nothing_of_names(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"x{number}.txt").write_text(text)
    once = list(documents(source(path="x*.txt"), str(tmp_path)))
    assert list(documents(source(path="x1.txt"), str(tmp_path))) == [TEXTS[1]]
    for number in range(3):
        (tmp_path / f"x{number}.txt").rename(tmp_path / f"y{2 - number}.txt")
    assert list(documents(source(path="*.txt"), str(tmp_path))) == once
    assert sorted(once) == sorted(TEXTS)


def test_decomposed_hangul_is_composed_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": unicodedata.normalize("NFD", TEXTS[2])}) + "\n\n" + json.dumps({"text": " \n"})
    )
    assert list(documents(source(path="a.jsonl"), str(tmp_path))) == [TEXTS[2]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 \(byte 3\): convert it or remove it"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y', r"line 2 of .*a\.jsonl is not valid JSON"),
        ("a.jsonl", b'{"Text": "x"}', r"line 1 of .* has no column 'text' \(it has Text\): set the source's `column`"),
        ("a.jsonl", b"[1]", r"has no column 'text' \(it has a list\)"),
        ("a.jsonl", b'{"text": null}', r"line 1 of .* holds a NoneType where text was expected"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1 of .* holds half of a character"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz cannot be read .*: it is damaged or no gzip file"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read as Parquet"),
        ("a.png", b"", r"no English text at '' below|no English text at 'side' below task\.text"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / name).write_bytes(data)
    with pytest.raises(UndoProbeError, match=message):
        list(documents(source(path="side"), str(tmp_path)))


def test_a_parquet_file_without_the_column_says_what_it_has(tmp_path: Path) -> None:
    pd.DataFrame({"body": TEXTS}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UndoProbeError, match=r"has no column 'text': it has body"):
        list(documents(source(path="x.parquet"), str(tmp_path)))
    assert sorted(documents(source(path="x.parquet", column="body"), str(tmp_path))) == sorted(TEXTS)


def test_a_missing_folder_says_how_to_get_text(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"^task\.text is empty: .*`undo-probe text FOLDER`"):
        list(documents(source(path="english"), ""))
    with pytest.raises(UndoProbeError, match=r"there is no such folder: run `undo-probe text FOLDER`"):
        list(documents(source(path="english"), str(tmp_path / "nowhere")))


@pytest.mark.parametrize(("columns", "subset"), [(FINEWEB_EDU, "sample-10BT"), (FINEWEB_2, "kor_Hang")])
def test_a_data_set_with_the_published_columns_is_streamed(
    tmp_path: Path, columns: dict[str, Any], subset: str
) -> None:
    data = tmp_path / "owner" / "set" / subset
    data.mkdir(parents=True)
    pd.DataFrame([{"text": text, **columns} for text in TEXTS]).to_parquet(data / "train-00000.parquet")
    head = f"configs:\n- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/train-*\n"
    (tmp_path / "owner" / "set" / "README.md").write_text(f"---\n{head}---\n")
    asked = source(dataset=str(tmp_path / "owner" / "set"), subset=subset)
    assert list(documents(asked, "")) == TEXTS
    before = state(asked, "")
    (data / "train-00001.parquet").write_bytes((data / "train-00000.parquet").read_bytes())
    assert state(asked, "") != before


def test_a_data_set_out_of_reach_is_one_line(tmp_path: Path) -> None:
    asked = source(dataset="owner/nowhere", subset="kor_Hang")
    with pytest.raises(
        UndoProbeError, match=r"^the data set 'owner/nowhere' \(subset 'kor_Hang'.*local folder$"
    ):
        list(documents(asked, ""))
    assert state(asked, "")["dataset"] == "owner/nowhere"


def test_the_state_follows_content_and_not_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text(TEXTS[0])
    before = state(source(path="a"), str(tmp_path))
    (tmp_path / "a" / "x.txt").rename(tmp_path / "a" / "y.txt")
    assert state(source(path="a"), str(tmp_path)) == before
    (tmp_path / "a" / "y.txt").write_text(TEXTS[1])
    assert state(source(path="a"), str(tmp_path)) != before


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_text_that_was_read_is_read_the_same_again(text: str) -> None:
    once = normal(text, "here")
    assert normal(once, "here") == once


def test_a_document_that_mostly_copies_another_is_found_and_others_are_not() -> None:
    def words(start: int, count: int) -> str:
        return " ".join(f"w{number}" for number in range(start, start + count))

    known = Shingles(0.5)
    assert not known.is_copy(words(0, 200))
    assert known.is_copy(words(40, 200))
    assert not known.is_copy(words(180, 200))
    assert not known.is_copy(words(1000, 200))
    assert known.is_copy(words(1000, 200))
    assert not known.is_copy("short") and not known.is_copy("short")
