"""The facts that are shipped: relations of countries and chemical elements, each in three statements and a question.

Where the tables come from, and under which licences, stands beside them in ``tables/README.md``.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from undo_probe.tasks.fact import Fact

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Statements:
    """How a relation is asked: ``{}`` is the entity, and the answer comes last."""

    table: str
    prompts: tuple[str, ...]
    question: str


RELATIONS: dict[str, Statements] = {
    "capital": Statements(
        "countries",
        ("The capital of {} is", "The capital city of {} is", "In {}, the seat of government is in the capital,"),
        "What is the capital of {}?",
    ),
    "currency": Statements(
        "countries",
        ("The currency of {} is the", "The official currency of {} is the", "In {}, people pay with the"),
        "What is the currency of {}?",
    ),
    "language": Statements(
        "countries",
        ("The official language of {} is", "In {}, the official language is", "The government of {} speaks"),
        "What is the official language of {}?",
    ),
    "continent": Statements(
        "countries",
        ("The continent of {} is", "On the map, {} lies in", "The country of {} is on the continent of"),
        "On which continent is {}?",
    ),
    "symbol": Statements(
        "elements",
        (
            "The chemical symbol for {} is",
            "The chemical element {} has the symbol",
            "The abbreviation for the element {} is",
        ),
        "What is the chemical symbol for {}?",
    ),
}  # fmt: skip


def shipped(relation: str) -> Iterator[Fact]:
    """The facts of a relation, in the order of its table; entities of which it is not known are left out."""
    how = RELATIONS[relation]
    with (TABLES / f"{how.table}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            answer, group = row[relation], row.get("continent", "")
            if answer:
                yield Fact(
                    prompts=tuple(text.format(row["name"]) for text in how.prompts),
                    answer=answer,
                    relation=relation,
                    entity=row["name"],
                    group=group,
                    # an answer from the same continent, or a symbol with the same first letter, is the harder choice;
                    # continents are few, and all of them are alike
                    kin="" if relation == "continent" else group or answer[0],
                    question=how.question.format(row["name"]),
                )
