"""What the pages in docs/ point at is there."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
DEFECTS = (REPO / "docs" / "published_defects.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DEFECTS)


def test_all_fifteen_defects_are_listed_with_a_test() -> None:
    lines = [line for line in DEFECTS.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(line.split("|")[1]) for line in lines] == list(range(1, 16))
    assert all("::test_" in line for line in lines)


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_every_test_that_a_page_names_exists(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (REPO / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
