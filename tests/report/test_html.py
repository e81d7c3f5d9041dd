"""The page: self-contained, safe, whole with files missing, and drawn by a real browser without a complaint."""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tests.report import synthetic
from undo_probe.errors import UndoProbeError
from undo_probe.report import write_report
from undo_probe.report.folder import read_run
from undo_probe.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "</script><script>alert(1)</script><img src=http://undo-probe.invalid/x onerror=alert(2)>{{7*7}}\u2028"
)
FETCHING = ("src", "href", "action", "data", "poster", "srcset", "background", "formaction", "ping")


class Tags(HTMLParser):
    """Start tags with their attributes, and the text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_folder(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run in which every text that comes from outside is an attack."""
    folder = synthetic.write_folder(tmp_path_factory.mktemp("runs") / "hostile", name=HOSTILE)
    for name in ("readings.parquet", "curves.parquet"):
        table = pd.read_parquet(folder / name)
        table["method"] = table["method"].replace("rmu", HOSTILE)
        for column in {"note", "subset", "layer"} & set(table.columns):
            table[column] = table[column].replace({"units": HOSTILE, "pos 3": HOSTILE, "covariance": HOSTILE})
        table.to_parquet(folder / name)
    run = json.loads((folder / "run.json").read_text())
    run["versions"][HOSTILE] = HOSTILE
    run["git"]["commit"] = HOSTILE
    run["arms"][0] |= {"label": HOSTILE, "stopped": HOSTILE, "parents": [HOSTILE]}
    (folder / "run.json").write_text(json.dumps(run))
    ledger = json.loads((folder / "ledger.json").read_text())
    ledger[0] |= {"label": HOSTILE, "stopped": HOSTILE}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {HOSTILE: {"a": HOSTILE}}))
    return write_report(folder).read_text(encoding="utf-8")


def test_one_file_of_moderate_size_holds_everything(page: str) -> None:
    assert len(page.encode()) <= 8 * 2**20
    assert page.count("* plotly.js v") == 1
    tags = Tags(page)
    policy = [attributes["content"] for tag, attributes in tags.tags if attributes.get("http-equiv")]
    assert policy == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    ]
    fetched = [(tag, name, value) for tag, attributes in tags.tags for name, value in attributes.items()
               if name in FETCHING and not str(value).startswith("#")]  # fmt: skip
    assert fetched == []
    assert not {"link", "iframe", "object", "embed", "img", "form", "base"} & {tag for tag, _ in tags.tags}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_the_page_has_headings_in_order_and_a_table_for_every_figure(page: str) -> None:
    tags = Tags(page)
    levels = [int(tag[1]) for tag, _ in tags.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    charts = [attributes for tag, attributes in tags.tags if attributes.get("class") == "chart"]
    assert len(charts) == 12
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert tags.count("figcaption") == len(charts) == page.count("What would have shown the opposite:")
    assert tags.count("table") >= len(charts) + 5
    assert tags.count("noscript") == len(charts)
    names = [attributes["id"] for _, attributes in tags.tags if attributes.get("id")]
    assert len(names) == len(set(names))
    for tag, attributes in tags.tags:
        if tag == "a":
            assert str(attributes["href"]).removeprefix("#") in names


def test_the_residual_streams_chapter_grows_with_what_was_measured(
    page: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "more")
    table = pd.read_parquet(folder / "readings.parquet")
    synthetic.with_stream(table).to_parquet(tmp_path / "more" / "readings.parquet")
    after = render(read_run(tmp_path / "more"))
    for name in ("stream-depth", "stream-lens", "stream-attribution"):
        assert f'id="figure-{name}"' in after
        assert f'id="figure-{name}"' not in page
    assert 'id="figure-stream"' in page
    assert "not applicable" in after
    assert "not applicable" not in page


def test_the_words_stand_without_any_script(page: str) -> None:
    words = " ".join(" ".join(Tags(page).words).split())
    for expected in ("MaxEnt hid multiplication and division", "one seed is one model", "Unlearn-and-Distill",
                     "unlearn.maxent.learning_rate", "task fingerprint", "retain accuracy is back"):  # fmt: skip
        assert expected in words


def test_the_page_names_no_path_of_the_machine(page: str, folder: Path) -> None:
    assert str(folder.parent) not in page


def test_the_same_files_give_the_same_page(page: str, folder: Path) -> None:
    assert render(read_run(folder)) == page


def test_hostile_text_is_shown_and_runs_nothing(page: str, hostile_page: str) -> None:
    tags, harmless = Tags(hostile_page), Tags(page)
    assert tags.count("script") == harmless.count("script")
    assert tags.count("img") == 0
    words = "".join(tags.words)
    assert words.count("{{7*7}}") > 10
    assert "<script>alert(1)</script>" in words
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', hostile_page, re.DOTALL):
        assert "<" not in data and "\u2028" not in data


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("curves.parquet", "undo-probe attack demo"),
        ("ledger.json", "undo-probe run --out demo"),
        ("run.json", "undo-probe run --out demo"),
        ("config.json", "undo-probe run --out demo"),
        ("readings.parquet and scorecard.json", "undo-probe score demo"),
        ("everything but config.json", "undo-probe attack demo"),
    ],
)
def test_a_page_without_a_file_says_which_and_what_makes_it(
    missing: str, command: str, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    for file in list(copy.iterdir()):
        if file.name in missing.split(" and ") or (
            missing.startswith("everything") and file.name != "config.json"
        ):
            file.unlink()
    text = write_report(copy).read_text()
    assert f"<code>{command}</code>" in text
    assert "This run is not complete" in text


def test_the_scorecard_stands_in_for_the_table_of_readings(folder: Path, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    (copy / "readings.parquet").unlink()
    text = write_report(copy, tmp_path / "report.html").read_text()
    assert "This run is not complete" not in text
    assert Tags(text).count("figcaption") == Tags(page).count("figcaption")


@dataclass
class HasFolder:
    folder: Path


def test_a_run_is_as_good_as_its_folder(folder: Path, page: str, tmp_path: Path) -> None:
    written = write_report(HasFolder(folder), tmp_path / "deep" / "page.html")
    assert written.read_text() == page


def test_what_is_no_run_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UndoProbeError, match="no run folder at"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UndoProbeError, match="neither config.json nor run.json"):
        write_report(tmp_path)
    with pytest.raises(UndoProbeError, match="cannot report on int"):
        write_report(3)


@pytest.mark.parametrize("name", ["readings.parquet", "curves.parquet", "run.json", "ledger.json"])
def test_a_damaged_file_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UndoProbeError, match=name):
        write_report(copy)


def test_a_table_of_something_else_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    pd.DataFrame({"a": [1]}).to_parquet(copy / "curves.parquet")
    with pytest.raises(UndoProbeError, match="curves.parquet has no column 'stage'"):
        write_report(copy)


class Proxy:
    """Takes every connection a browser tries to make, and remembers the hosts asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.asked.append(connection.recv(300).split(b"\r\n")[0].decode(errors="replace"))
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    found = Proxy()
    yield found
    found.close()


def browse(page: Path, proxy: Proxy) -> tuple[str, str]:
    """The document as a browser has it after its scripts ran, and what it logged."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={profile}", f"--proxy-server=http://127.0.0.1:{proxy.port}"]
        command += ["--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("which", ["page", "hostile_page"])
def test_a_browser_draws_every_figure_and_asks_nobody(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, proxy: Proxy
) -> None:
    path = tmp_path / "report.html"
    path.write_text(request.getfixturevalue(which), encoding="utf-8")
    document, console = browse(path, proxy)
    assert console == ""
    assert [line for line in proxy.asked if "google" not in line and "gvt1" not in line] == []
    drawn = document[document.index("<header>") :]
    drawn = re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL)
    empty = re.findall(r'class="chart"[^>]*></div>', drawn)
    assert len(empty) <= 4, "only figures in closed details may wait until they are opened"
    assert drawn.count('class="main-svg"') >= 2 * (11 - len(empty))
    assert not re.search(r"[Ss]hare chart|[Ss]end to|cloud", drawn)
    assert "<img" not in drawn
