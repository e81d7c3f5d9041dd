"""Text out of packages: only running text, only its own language, each paragraph once."""

import gzip
import json
import struct
from pathlib import Path

import pytest

from undo_probe.errors import UndoProbeError
from undo_probe.tasks import gather as gathering
from undo_probe.tasks.gather import Package, extract, gather, language_of, paragraphs

PAGE = """<html><head><title>No</title><style>p {}</style></head><body>
<nav><p>skip this menu please</p></nav>
<h1>Printing a document</h1>
<p>Choose <b>Print</b> from the
  menu, then <a href="x">wait</a>.<br/>A new line is a new paragraph.</p>
<pre>print --all --now --here</pre>
<p>문서를 인쇄하려면 <em>파일</em> 메뉴를 엽니다.</p>
<p>Ångström é ü ö ä ß ø</p>
<p>Too short</p>
</body></html>"""


def catalogue(pairs: dict[str, str]) -> bytes:
    """A compiled message catalogue, as msgfmt writes it."""
    count = len(pairs)
    texts = [text.encode() for text in [*pairs, *pairs.values()]]
    place, offset = 28 + 16 * count, []
    for text in texts:
        offset.append((len(text), place))
        place += len(text) + 1
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + b"".join(struct.pack("<2I", *pair) for pair in offset) + b"".join(t + b"\0" for t in texts)


def test_a_page_gives_its_paragraphs_and_no_menus_or_code(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    found = list(paragraphs(tmp_path / "a.html"))
    assert found == [
        "Printing a document",
        "Choose Print from the menu, then wait.",
        "A new line is a new paragraph.",
        "문서를 인쇄하려면 파일 메뉴를 엽니다.",
        "Ångström é ü ö ä ß ø",
        "Too short",
    ]


def test_other_files_are_read_by_kind_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.page").write_text(
        "<page><info><desc>no</desc></info><p>Mallard is <key>F1</key> too.</p></page>"
    )
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one paragraph\nof two lines\n\nanother one"))
    (tmp_path / "c.mo").write_bytes(
        catalogue({"ctx\x04~Open the file": "파일 열기(~O)", "one\0many": "하나\0여럿"})
    )
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    (tmp_path / "e.txt").write_bytes("한글".encode("euc-kr"))
    (tmp_path / "f.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "g.mo").write_bytes(b"\xde\x12\x04\x95" + b"\xff" * 40)
    assert list(paragraphs(tmp_path / "a.page")) == ["Mallard is F1 too."]
    assert list(paragraphs(tmp_path / "b.txt.gz")) == ["one paragraph of two lines", "another one"]
    assert list(paragraphs(tmp_path / "c.mo")) == [
        "Open the file",
        "파일 열기(O)",
        "one",
        "many",
        "하나",
        "여럿",
    ]
    for name in "defg":
        assert list(paragraphs(next(tmp_path.glob(f"{name}.*")))) == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Open the file.", "english"),
        ("파일을 엽니다.", "korean"),
        ("Writer 문서를 엽니다", "korean"),
        ("LibreOffice Writer 문서", ""),
        ("Ångström é ü ö", ""),
        ("123 456", ""),
    ],
)
def test_half_hangul_is_korean_and_none_of_it_english(text: str, language: str) -> None:
    assert language_of(text) == language


def unpacked(tree: Path) -> Package:
    (tree / "usr/share/help").mkdir(parents=True)
    (tree / "usr/share/help/a.html").write_text(PAGE, encoding="utf-8")
    (tree / "usr/share/help/b.html").write_text(PAGE.replace("Printing", "Saving"), encoding="utf-8")
    (tree / "usr/share/doc/some-help").mkdir(parents=True)
    (tree / "usr/share/doc/some-help/copyright").write_text(
        "Files: *\nLicense: MPL-2.0\n text\nLicense: GPL-2+\n"
    )
    return Package("some-help", ("usr/share/help",))


def test_a_package_gives_each_paragraph_once_a_file_a_document_and_its_licence(tmp_path: Path) -> None:
    package = unpacked(tmp_path / "tree")
    known: dict[str, set[str]] = {"english": set(), "korean": set()}
    told = extract(tmp_path / "tree", package, tmp_path / "out", known)
    english = [
        json.loads(line) for line in (tmp_path / "out/english/some-help.jsonl").read_text().splitlines()
    ]
    korean = [json.loads(line) for line in (tmp_path / "out/korean/some-help.jsonl").read_text().splitlines()]
    assert [row["id"] for row in english] == ["usr/share/help/a.html", "usr/share/help/b.html"]
    assert english[1]["text"] == "Saving a document"
    assert [row["text"] for row in korean] == ["문서를 인쇄하려면 파일 메뉴를 엽니다."]
    assert told["licences"] == ["GPL-2+", "MPL-2.0"]
    assert told["english_documents"] == 2 and told["korean_documents"] == 1
    assert told["english_characters"] == sum(len(row["text"]) for row in english)
    assert (tmp_path / "out/licences/some-help.txt").read_text().startswith("Files: *")


def test_a_catalogue_is_several_documents_and_plain_copies_of_pages_are_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "ko").mkdir(parents=True)
    pairs = {f"message number {n} of many": f"여러 개 가운데 {n}번째 메시지입니다" for n in range(250)}
    (tree / "ko" / "a.mo").write_bytes(catalogue(pairs))
    (tree / "ko" / "b.txt").write_text("a plain text of its own")
    known: dict[str, set[str]] = {"english": set(), "korean": set()}
    told = extract(tree, Package("p", ("ko",)), tmp_path / "out", known)
    assert told["korean_documents"] == 3 and told["english_documents"] == 4
    assert told["licences"] == ["not stated in the package"]
    (tree / "ko" / "c.html").write_text(PAGE, encoding="utf-8")
    fresh: dict[str, set[str]] = {"english": set(), "korean": set()}
    extract(tree, Package("q", ("ko",)), tmp_path / "out", fresh)
    assert "a plain text of its own" in known["english"] - fresh["english"]


def test_gathering_says_what_it_took_from_each_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With apt and dpkg replaced by what they would leave behind."""
    called = []

    def call(*words: str, folder: Path | None = None) -> str:
        called.append(words[:2])
        if words[0] == "apt-get":
            assert folder is not None
            (folder / f"{words[2]}_1_all.deb").write_bytes(b"")
        if words[:2] == ("dpkg-deb", "-x"):
            unpacked(Path(words[3]))
        return "1.0\n"

    monkeypatch.setattr(gathering, "_call", call)
    monkeypatch.setattr(gathering, "PACKAGES", (Package("some-help", ("usr/share/help",)),))
    said: list[str] = []
    body = gather(tmp_path / "out", say=said.append)
    assert body["packages"]["some-help"]["version"] == "1.0"
    assert json.loads((tmp_path / "out" / "sources.json").read_text()) == body
    assert said[0].startswith("some-help: ") and "MPL-2.0" in said[0] and said[1].startswith("all: ")
    assert ("apt-get", "download") in called
    with pytest.raises(UndoProbeError, match="no text of both languages was found in 0 packages"):
        gather(tmp_path / "more", debs=tmp_path)


def test_a_machine_without_apt_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UndoProbeError, match=r"there is no apt-get on this machine: .*task\.forget\.path"):
        gather(tmp_path / "out")
