"""What text calls a task's rows and scores: questions that are answered, or bits that are saved on running text."""

from dataclasses import dataclass, replace

from undo_probe.records import TaskWords


@dataclass(frozen=True)
class Said:
    """Words and sentences; ``{}`` in ``rows`` and ``scored`` stands for forget or retain."""

    rows: str
    scored: str
    share: str
    place: str
    silent: str
    never_told: str
    drawn: str
    original: str
    counts: str
    constant: str
    matched: str
    knew: str
    still: str


QUESTIONS = Said(
    rows="{} questions",
    scored="{} questions answered",
    share="Share of questions answered exactly right",
    place="question",
    silent="trained to stop answering",
    never_told="saw the questions, never the answers",
    drawn="the same questions with answers drawn at random",
    original="The original answers {value} of the questions on {what} that it is tested on ({counts}).",
    counts="{n} questions{clusters}, none shown to any attacker",
    constant="where the best constant answer scores",
    matched="which met the same questions but never their answers",
    knew="a model that never knew the answers",
    still="still answers",
)
TEXT = Said(
    rows="{} text",
    scored="bits saved on {} text",
    share="Share of a uniform guess’s bits saved on the next token",
    place="row",
    silent="trained to know nothing of it",
    never_told="saw the tokens, never in their order",
    drawn="the same tokens, each drawn by itself",
    original="The original saves {value} of a uniform guess’s bits on {what} ({counts}).",
    counts="{n} rows of text{clusters}, in none of which any model was trained",
    constant="where token frequencies alone save",
    matched="which met the same tokens but never in their order",
    knew="a model that never saw the language",
    still="still saves",
)


GIVEN = {
    "silent": "given",
    "never_told": "given, to stand for a model that never knew",
    "drawn": "what its maker says",
    "counts": "{n} rows{clusters}",
    "matched": "a model that was given to stand for one that never knew",
}
"""Of models that came from elsewhere no sentence says what they met in training."""


def said(words: TaskWords | None) -> Said:
    """How to speak of a task's rows; without words of its own it is arithmetic, which asks questions."""
    found = TEXT if words is not None and words.scored else QUESTIONS
    return replace(found, **GIVEN) if words is not None and words.given else found
