"""English and Korean running text out of Debian's documentation packages, into a folder of the user's.

Nothing is installed and no rights are needed: packages are downloaded with the machine's own apt, unpacked into a
temporary folder, and paragraphs are taken out of their HTML, XML, text and message files. A paragraph is Korean where
at least half of its letters are Hangul; English left standing in a translated file is not, so files say nothing of
language. Both languages come from translations of the same pages: that a page is known in English does not
teach its Korean, but says what it is about. The text keeps its licences, which are copied beside it.
"""

import gzip
import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from undo_probe.errors import UndoProbeError
from undo_probe.files import write_json, write_text

LANGUAGES: tuple[str, ...] = ("english", "korean")
SHORTEST = 12
"""Characters of a paragraph; what is shorter is headings and labels."""
MESSAGES = 100
"""Messages of a catalogue that make up a document."""
_MARKED = (".html", ".htm", ".xhtml", ".xml", ".page")
_INLINE = frozenset(
    "a abbr ahelp app b bdi big cite cmd em emph file font gui guilabel guimenu guimenuitem guiseq i input item key "
    "keyseq kbd link literal q quote small span strong sub sup sys tt u ulink var xref".split()
)
_SKIPPED = frozenset(
    "code desc figure footer head info media nav pre programlisting revision screen script style svg synopsis".split()
)


@dataclass(frozen=True)
class Package:
    """A package and the folders of it that hold text, of whatever language."""

    name: str
    folders: tuple[str, ...]


_HELP, _DOC = "usr/share/libreoffice/help", "usr/share/doc"
PACKAGES = (
    Package("libreoffice-help-ko", (f"{_HELP}/ko/text",)),
    Package("libreoffice-help-en-us", (f"{_HELP}/en-US/text",)),
    Package("gnome-user-docs", ("usr/share/help/ko", "usr/share/help/C")),
    Package(
        "installation-guide-amd64",
        (f"{_DOC}/installation-guide-amd64/ko", f"{_DOC}/installation-guide-amd64/en"),
    ),
    Package("debian-faq-ko", (f"{_DOC}/debian/FAQ/ko",)),
    Package("debian-faq", (f"{_DOC}/debian/FAQ",)),
    Package("debian-handbook", (f"{_DOC}/debian-handbook/html/en-US",)),
    Package("libreoffice-l10n-ko", ("usr/lib/libreoffice/program/resource/ko",)),
    Package("vlc-l10n", ("usr/share/locale/ko",)),
)


def gather(
    folder: str | Path, debs: str | Path | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Fills ``folder`` with ``english`` and ``korean``, one .jsonl file a package, and says what it did.

    Args:
        folder: made if missing; files of the same names are written anew.
        debs: a folder of .deb files to use in place of downloading.
        say: is told one line a step.

    Returns:
        What ``sources.json`` holds: for each package its version, licences, documents and characters of either
        language, and the totals.

    Raises:
        UndoProbeError: there is no apt-get or dpkg-deb, a package cannot be had, or nothing was found.
    """
    target = Path(folder).expanduser()
    known: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="undo-probe-text-") as scratch:
        for package in PACKAGES:
            archive = _archive(package.name, Path(scratch), None if debs is None else Path(debs))
            if archive is None:
                say(f"{package.name}: no such file in {debs}, left out")
                continue
            tree = Path(scratch) / "tree"
            _call("dpkg-deb", "-x", str(archive), str(tree))
            version = _call("dpkg-deb", "-f", str(archive), "Version").strip()
            told[package.name] = {"version": version, **extract(tree, package, target, known)}
            shutil.rmtree(tree)
            archive.unlink() if debs is None else None
            say(_line(package.name, told[package.name]))
    total = {
        f"{language}_{what}": sum(one[f"{language}_{what}"] for one in told.values())
        for language in LANGUAGES for what in ("documents", "characters")
    }  # fmt: skip
    if not all(total.values()):
        raise UndoProbeError(
            f"no text of both languages was found in {len(told)} packages: expected the .deb files of "
            f"{', '.join(package.name for package in PACKAGES)}"
        )
    body = {"packages": told, "total": total}
    write_json(target / "sources.json", body)
    say(_line("all", total))
    return body


def extract(tree: Path, package: Package, target: Path, known: dict[str, set[str]]) -> dict[str, Any]:
    """Writes the paragraphs of an unpacked package, each once, and its licence; ``known`` grows.

    A file is a document; a catalogue of messages is one for every hundred. ``known`` holds the paragraphs that
    earlier packages gave, for each language.
    """
    found: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    sizes: dict[str, int] = dict.fromkeys(LANGUAGES, 0)
    for path in _files(tree, package.folders):
        kept: dict[str, list[str]] = {language: [] for language in LANGUAGES}
        for paragraph in paragraphs(path):
            language = language_of(paragraph)
            if len(paragraph) >= SHORTEST and language and paragraph not in known[language]:
                known[language].add(paragraph)
                kept[language].append(paragraph)
        size = MESSAGES if path.suffix == ".mo" else 10**9
        for language, listed in kept.items():
            for start in range(0, len(listed), size):
                text, name = "\n".join(listed[start : start + size]), path.relative_to(tree).as_posix()
                row = {"text": text, "source": package.name, "id": f"{name}#{start}" if start else name}
                found[language].append(json.dumps(row, ensure_ascii=False))
                sizes[language] += len(text)
    for language, lines in found.items():
        if lines:
            write_text(target / language / f"{package.name}.jsonl", "\n".join(lines) + "\n")
    counts = {f"{language}_documents": len(lines) for language, lines in found.items()}
    return {
        "licences": _licences(tree, package.name, target),
        **counts,
        **{f"{language}_characters": size for language, size in sizes.items()},
    }


def paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of an HTML, XML, text or message file, with single spaces; none of other files."""
    name = path.name.lower().removesuffix(".gz")
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return
    if name.endswith(".mo"):
        listed = _messages(data)
    elif name.endswith(_MARKED):
        reader = _Reader()
        reader.feed(data.decode("utf-8", errors="replace"))
        reader.close()
        listed = reader.paragraphs()
    elif name.endswith((".txt", ".md")):
        listed = re.split(r"\n\s*\n", data.decode("utf-8", errors="replace"))
    else:
        return
    for text in listed:
        plain = " ".join(text.split())
        # a file in another encoding, not text
        if plain and "\ufffd" not in plain:
            yield plain


def language_of(paragraph: str) -> str:
    """``korean`` where half of the letters are Hangul, ``english`` where none and nine tenths are ASCII, else empty."""
    letters = [letter for letter in paragraph if letter.isalpha()]
    hangul = sum("가" <= letter <= "힣" for letter in letters)
    if letters and hangul >= len(letters) / 2:
        return "korean"
    plain = sum(letter.isascii() for letter in letters)
    return "english" if letters and not hangul and plain >= 0.9 * len(letters) else ""


class _Reader(HTMLParser):
    """Text of marked-up pages: a tag that is not known to stand inside a line ends the paragraph."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in _SKIPPED:
            self._inside.append(tag)
        elif tag not in _INLINE:
            self._parts.append("\0")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            # an inner one that was never closed ends with the outer one
            del self._inside[self._inside.index(tag) :]
        elif tag not in _INLINE:
            self._parts.append("\0")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self._parts.append(data.replace("\0", " "))

    def paragraphs(self) -> list[str]:
        return "".join(self._parts).split("\0")


def _messages(data: bytes) -> Iterator[str]:
    """Messages and their translations out of a compiled catalogue (GNU gettext's .mo format)."""
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None or len(data) < 20:
        return
    count, *tables = struct.unpack_from(f"{order}3I", data, 8)
    for number in range(count):
        for table in tables:
            place = table + 8 * number
            if place + 8 > len(data):
                return
            length, start = struct.unpack_from(f"{order}2I", data, place)
            text = data[start : start + length].decode("utf-8", errors="replace")
            # a context stands before \4, plural forms between \0; ~ and _ mark an access key
            for form in text.rpartition("\x04")[2].split("\0"):
                yield re.sub(r"[~_](?=\w)", "", form)


def _files(tree: Path, folders: tuple[str, ...]) -> list[Path]:
    listed = {path for folder in folders for path in (tree / folder).rglob("*")}
    found = sorted(path for path in listed if path.is_file() and not path.is_symlink())
    if any(path.name.endswith(_MARKED) for path in found):
        # a manual comes as pages and once more as plain text
        found = [path for path in found if not path.name.removesuffix(".gz").endswith((".txt", ".md"))]
    return found


def _licences(tree: Path, name: str, target: Path) -> list[str]:
    """The short names in a package's copyright file, which is kept beside the text."""
    path = tree / _DOC / name / "copyright"
    if not path.is_file():
        return ["not stated in the package"]
    text = path.read_text(encoding="utf-8", errors="replace")
    write_text(target / "licences" / f"{name}.txt", text)
    named = re.findall(r"^License: *(\S.*?) *$", text, flags=re.MULTILINE)
    return sorted(set(named)) or [f"see licences/{name}.txt"]


def _archive(name: str, scratch: Path, debs: Path | None) -> Path | None:
    where = scratch if debs is None else debs
    if debs is None:
        _call("apt-get", "download", name, folder=scratch)
    return next(iter(sorted(where.glob(f"{name}_*.deb"))), None)


def _call(*words: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800)
    except FileNotFoundError:
        raise UndoProbeError(
            f"there is no {words[0]} on this machine: gather the text on Debian or Ubuntu, or bring your own and give "
            "task.text, task.retain.path and task.forget.path"
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or "no message").split("\n")[-1]
        raise UndoProbeError(
            f"`{' '.join(words)}` failed ({last}): `apt-get update` may help, or another mirror"
        )
    return done.stdout


def _line(what: str, one: dict[str, Any]) -> str:
    sizes = ", ".join(
        f"{one[f'{name}_characters']:,} characters of {name.capitalize()} in {one[f'{name}_documents']} documents"
        for name in LANGUAGES
    )
    licence = f" ({', '.join(one['licences'])[:120]})" if "licences" in one else ""
    return f"{what}: {sizes}{licence}"
