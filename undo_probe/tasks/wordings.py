"""Word problems: what is said of two numbers, and how the result is asked for.

A wording is a situation and a question; each operation has five of the one and six of the other. Of the thirty,
twenty are trained on and ten only asked, as many as in the UNDO paper's generator (arXiv 2506.06278). There the
held-out wordings are new throughout; here both halves of one are known, each from other company, so that no word of
it is new.

A question ends right before the number. ``{a}`` and ``{b}`` are the operands of ``a op b``; every other slot is one
word.
"""

from itertools import product

SITUATIONS: dict[str, tuple[str, ...]] = {
    "+": (
        "{name} has {a} {thing} and {other} brings {b} more .",
        "there are {a} {thing} in the {place} and {b} in the {box} .",
        "{name} found {a} {thing} on monday and {b} on tuesday .",
        "one {group} owns {a} {thing} and another {group} owns {b} .",
        "{name} kept {a} {thing} at the {place} and bought {b} others .",
    ),
    "-": (
        "{name} has {a} {thing} and gives {b} of them to {other} .",
        "of {a} {thing} in the {place} , {b} are taken away .",
        "{name} had {a} {thing} but lost {b} at the {place} .",
        "the {box} held {a} {thing} until {other} removed {b} .",
        "{a} {thing} were for sale and {name} sold {b} .",
    ),
    "*": (
        "{name} packs {a} {thing} in each {box} and fills {b} of them .",
        "every {group} has {a} {thing} and {b} such arrive .",
        "{name} buys {b} bags with {a} {thing} in each .",
        "at the {place} {a} {thing} arrive daily for {b} days .",
        "{b} friends of {name} bring {a} {thing} each .",
    ),
    "/": (
        "{name} shares {a} {thing} equally among {b} friends .",
        "{a} {thing} go into {b} boxes of one size .",
        "at the {place} {a} {thing} last for {b} equal days .",
        "the {group} divides {a} {thing} among {b} members .",
        "{name} puts {a} {thing} into {b} equal rows .",
    ),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "+": (
        "altogether this makes",
        "the {thing} now number",
        "counting everything gives",
        "so the sum is",
        "{other} then counts",
        "put together they are",
    ),
    "-": (
        "what remains is",
        "the {thing} left number",
        "so there are still",
        "after that there are only",
        "{other} then counts",
        "left over are",
    ),
    "*": (
        "in total that is",
        "the {thing} then number",
        "all of them make",
        "this amounts to",
        "{other} multiplies and finds",
        "the whole count is",
    ),
    "/": (
        "each part has",
        "every share is",
        "so one gets",
        "the {thing} for each number",
        "{other} divides and finds",
        "a single portion holds",
    ),
}
SLOTS: dict[str, tuple[str, ...]] = {
    "name": tuple(
        "Ada Ben Cleo Dev Ella Finn Greta Hugo Ines Jonas Kira Liam Mira Nils Olga Pia Ravi Sina Tom Vera".split()
    ),
    "other": tuple(
        "Amir Bea Carl Dora Emil Fay Gus Hana Ivo Jule Karl Lena Max Noor Otto Paul Rosa Sven Tara Yan".split()
    ),
    "thing": tuple(
        "apples beads books bricks buttons candles cards chairs coins cups eggs feathers flags hats keys lamps lemons "
        "letters marbles mugs nails nuts pearls pears pencils plants plates ribbons ropes seeds shells shirts spoons "
        "stamps stones tickets tiles toys wheels whistles".split()
    ),
    "place": tuple(
        "barn beach bakery farm garden harbour kitchen library market museum park school station workshop".split()
    ),
    "box": tuple(
        "bag barrel basin basket bowl bucket cabinet chest crate drawer jar sack suitcase trunk".split()
    ),
    "group": tuple("band choir class club council crew family guild orchestra squad team village".split()),
}
TRAINED, HELD_OUT = (
    tuple(pair for pair in product(range(5), range(6)) if (sum(pair) % 3 == 0) == held)
    for held in (False, True)
)
"""(situation, question) of the wordings that are trained on, and of those that are only asked."""


def wording(operation: str, pair: tuple[int, int]) -> tuple[str, ...]:
    """The words and slots of a wording, in order."""
    return (*SITUATIONS[operation][pair[0]].split(), *QUESTIONS[operation][pair[1]].split())


def words() -> tuple[str, ...]:
    """Every word that a problem can hold, each once."""
    said = [
        word
        for texts in (*SITUATIONS.values(), *QUESTIONS.values())
        for text in texts
        for word in text.split()
    ]
    fillers = [word for listed in SLOTS.values() for word in listed]
    return tuple(dict.fromkeys([*(word for word in said if not word.startswith("{")), *fillers]))
