"""Invented people: facts that nothing implies, to be forgotten for some of the people and kept for the others.

A row is ``where does Alba Brenor live now ? Arvale``: a question of seven tokens, one a word, and an answer of one.
Who there is and what is true of whom is drawn from the seed, each answer by itself, so neither a name nor any
other fact says anything about it.

*Held out* cannot mean people here: nobody knows a person who was never mentioned. What is held out is a wording.
Each fact can be asked in several, and one of them, drawn for each fact, is in no training set of that fact: a model
that answers it remembers the fact and not the sentence. Every split but ``retain_train`` asks in that wording.
Forget people are dealt to T, V, W and D whole; retain people are all in ``retain_train``, and half of them each in
``retain_dev`` and ``retain_test``, so that a stop rule never looks at the rows that are reported. Where only some
facts of a forget person are forgotten, the others are retain facts, dealt by person as those of retain people.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed
from undo_probe.records import TaskWords
from undo_probe.task_config import InventedConfig
from undo_probe.tasks.dealing import by_shares
from undo_probe.tasks.pool import Pool, Pooled, best_constants, by_side
from undo_probe.tasks.protocol import (
    FORGET_SPLITS,
    RETAIN_SPLITS,
    TokenSet,
    check_disjoint,
    join,
)

_STARTS = ("Al", "Bri", "Co", "Da", "El", "Fa"), ("Bren", "Crom", "Dorn", "Fal", "Gren", "Hal")
_ENDS = (
    ("ba", "da", "la", "mo", "na", "ro", "sa", "vi"),
    ("by", "dal", "ey", "ick", "man", "or", "sen", "ton"),
)
FIRST, LAST = (tuple(map("".join, product(*parts))) for parts in zip(_STARTS, _ENDS, strict=True))
# every wording has six words and a name; the answer is always read at the question mark
RELATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "town": (
        ("where does {} live now ?", "in which town is {} ?", "what is {} 's home ?", "{} lives in which town ?"),
        "Arvale Belmere Corran Dunhaven Eastmoor Fenwick Glasby Hollin Ivybridge Jarrow Kelstone Lorne Marsden "
        "Norwell Oakley Pendle",
    ),
    "trade": (
        ("what work does {} do ?", "which trade has {} learned ?", "{} earns money as what ?",
         "what is {} 's profession ?"),
        "baker carpenter tailor miller potter weaver mason farrier cooper glazier printer saddler tanner brewer "
        "chandler thatcher",
    ),
    "instrument": (
        ("which instrument does {} play ?", "what does {} like playing ?", "{} makes music on what ?",
         "what is {} 's instrument ?"),
        "fiddle flute harp lute drum horn oboe cello viola zither banjo organ trumpet clarinet bagpipe dulcimer",
    ),
    "pet": (
        ("what animal does {} keep ?", "which pet lives with {} ?", "{} shares rooms with what ?",
         "what is {} 's pet ?"),
        "cat dog parrot rabbit tortoise canary hamster ferret gecko goldfish pony goat hedgehog mouse duck owl",
    ),
    "colour": (
        ("which colour does {} wear ?", "what colour suits {} best ?", "{} paints everything in what ?",
         "what is {} 's colour ?"),
        "red blue green yellow purple orange brown black white grey pink teal crimson violet amber ivory",
    ),
    "dish": (
        ("what does {} cook best ?", "which meal does {} serve ?", "{} always orders which dish ?",
         "what is {} 's dish ?"),
        "stew pancakes risotto curry dumplings omelette paella lasagne goulash chowder ramen tagine borscht quiche "
        "gnocchi pilaf",
    ),
}  # fmt: skip
_PROMPT = 7
TRAINED = "_trained"
"""Suffix of a forget split's rows in the wordings that models are trained on."""
_EVERYBODY = ("retain_train", *(f"{split}{TRAINED}" for split in FORGET_SPLITS))


class InventedTask(Pooled):
    """Facts about invented people, with everything about them drawn from ``seed``.

    A family is a person: all questions about one. ``forget_V_trained`` and its like are the questions that models
    were trained on; ``forget_V`` asks about the same facts in the wording that they were not.
    """

    name: str = "invented"
    probe_targets: tuple[str, ...] = ("answer",)
    extra_splits: tuple[str, ...] = (f"forget_V{TRAINED}",)

    def __init__(self, config: InventedConfig, seed: int) -> None:
        """Draws people, facts, wordings and splits.

        Raises:
            UndoProbeError: a split would be empty.
        """
        self.config = config
        self.n_ctx: int = (_PROMPT + 1) * (config.shots + 1)
        self.relations = tuple(RELATIONS)[: config.relations]
        self.forget_operations: tuple[str, ...] = self.relations
        self.retain_operations: tuple[str, ...] = self.relations
        self.vocabulary: tuple[str, ...] = _vocabulary(config)
        self.d_vocab = len(self.vocabulary)
        self.words = _words(self.relations, config.forget_relations is not None)
        self._facts = _facts(config, seed)
        self._sets = _splits(self._facts, config, self.vocabulary)
        _check(self._sets, entangled=config.forget_relations is not None)
        self._mixtures = _mixtures(config)
        self._pools = {name: self._pool(name) for name in self._mixtures}
        self.fingerprint = digest({"task": config.identity(), "split_seed": seed, "rows": 1})

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """First name, last name, and which relation is asked in which wording, one-hot."""
        labels = rows.labels
        question = labels["operation"] + labels["wording"].astype(str)
        hot = pd.concat(
            [pd.get_dummies(part) for part in (labels["first"], labels["last"], question)], axis=1
        )
        features = hot.to_numpy(dtype=np.float32)
        return features[:, features.std(axis=0) > 0]

    def chance(self) -> dict[str, float]:
        """Accuracy of the best constant answer over all people, for each relation."""
        return best_constants(self._facts, "answer")

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The words of ``tokens``."""
        return " ".join(self.vocabulary[token] for token in tokens.tolist())

    def _pool(self, mixture: str) -> Pool:
        parts = [self._sets[name] for name in self._mixtures[mixture]]
        forget = [f"forget {relation}" for relation in self.relations]
        retain = [f"retain {relation}" for relation in self.relations]
        # oracle_matched: the prompt is seen, its answer is another forget person's, of the same relation
        redrawn = forget if mixture == "matched" else ()
        return Pool(parts, by_side(parts), (*retain, *forget), redrawn, packed=self.config.shots + 1)


def _mixtures(config: InventedConfig) -> dict[str, tuple[str, ...]]:
    """Which splits a mixture shows; only the attacker always has all wordings, of T."""
    unlearn = tuple(f"forget_{name}{TRAINED}" for name in "TVD")
    if config.unlearn_wordings == "all":
        unlearn += tuple(f"forget_{name}" for name in "TVD")
    return {
        "pretrain": _EVERYBODY,
        "matched": _EVERYBODY,
        "retain": ("retain_train",),
        "unlearn": unlearn,
        "distill": ("retain_train", *unlearn),
        "attack": (f"forget_T{TRAINED}", "forget_T"),
        "attack_mixed": ("retain_train", f"forget_T{TRAINED}", "forget_T"),
    }


def _vocabulary(config: InventedConfig) -> tuple[str, ...]:
    """Names, the words of the questions that are asked, and their answers; each once."""
    asked = list(RELATIONS.values())[: config.relations]
    words = [word for wordings, _ in asked for text in wordings[: config.wordings] for word in text.split()]
    answers = [answer for _, listed in asked for answer in listed.split()[: config.answers]]
    return tuple(dict.fromkeys([*FIRST, *LAST, *(word for word in words if word != "{}"), *answers]))


def _facts(config: InventedConfig, seed: int) -> pd.DataFrame:
    """One line a fact: who, asked what, the answer's number, which wording is held out, and where the person is."""

    def draw(purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(seed, "invented", purpose))

    names = draw("people").permutation(len(FIRST) * len(LAST))[: config.people]
    shape = (config.people, config.relations)
    answers = draw("answers").integers(config.answers, size=shape)
    held = draw("wordings").integers(config.wordings, size=shape)
    places = _places(config, draw("split"))
    if config.forget_relations is not None:
        _spare(places, config.forget_relations, draw("spared facts"))
    lines = []
    for person, code in enumerate(names):
        first, last = FIRST[code // len(LAST)], LAST[code % len(LAST)]
        for number, relation in enumerate(tuple(RELATIONS)[: config.relations]):
            fact = int(answers[person, number]), int(held[person, number])
            lines.append((f"{first} {last}", first, last, relation, *fact, places[person, number]))
    return pd.DataFrame(lines, columns=["family", "first", "last", "operation", "answer", "held", "place"])


def _places(config: InventedConfig, draw: np.random.Generator) -> np.ndarray:
    """Shape (person, relation): the forget set, or the retain split in which it is asked in the held-out wording."""
    order = draw.permutation(config.people)
    forget = round(config.forget_share * config.people)
    place = np.empty(config.people, dtype=object)
    for split, people in zip(
        FORGET_SPLITS, by_shares(order[:forget], config.forget_shares, config.fold), strict=True
    ):
        place[people] = split
    half = forget + (config.people - forget) // 2
    place[order[forget:half]] = "retain_dev"
    place[order[half:]] = "retain_test"
    return np.repeat(place[:, None], config.relations, axis=1)


def _spare(places: np.ndarray, forgotten: int, draw: np.random.Generator) -> None:
    """Leaves ``forgotten`` facts of each forget person and makes the others retain facts, in place."""
    for number, person in enumerate(np.flatnonzero(np.isin(places[:, 0], FORGET_SPLITS))):
        spared = draw.permutation(places.shape[1])[forgotten:]
        places[person, spared] = RETAIN_SPLITS[1 + number % 2]


def _splits(facts: pd.DataFrame, config: InventedConfig, vocabulary: tuple[str, ...]) -> dict[str, TokenSet]:
    """The rows of every split: one a fact in the held-out wording, the others in those of training."""
    asked = facts.merge(pd.DataFrame({"wording": range(config.wordings)}), how="cross")
    held, place = (asked["wording"] == asked["held"]).to_numpy(), asked["place"].to_numpy()
    known = {word: index for index, word in enumerate(vocabulary)}
    parts = {name: held & (place == name) for name in (*FORGET_SPLITS, *RETAIN_SPLITS[1:])}
    parts |= {f"{name}{TRAINED}": ~held & (place == name) for name in FORGET_SPLITS}
    parts["retain_train"] = ~held & ~np.isin(place, FORGET_SPLITS)
    for name, part in parts.items():
        if not part.any():
            raise UndoProbeError(
                f"the split {name} is empty with these task settings: raise its share or the number of people "
                f"(task.people={config.people}, task.forget_share={config.forget_share}, "
                f"task.forget_shares={list(config.forget_shares)})"
            )
    rows = {name: np.flatnonzero(part) for name, part in parts.items()}
    return {name: _token_set(name, asked.iloc[index], known) for name, index in rows.items()}


def _token_set(name: str, table: pd.DataFrame, known: dict[str, int]) -> TokenSet:
    """Questions with their answers as tokens, and the labels of each."""
    tokens = torch.empty(len(table), _PROMPT + 1, dtype=torch.int64)
    for row, (person, relation, wording, answer) in enumerate(
        zip(table["family"], table["operation"], table["wording"], table["answer"], strict=True)
    ):
        wordings, answers = RELATIONS[relation]
        text = f"{wordings[wording].format(person)} {answers.split()[answer]}"
        tokens[row] = torch.tensor([known[word] for word in text.split()])
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, _PROMPT] = True
    kept = ["operation", "family", "first", "last", "wording", "answer"]
    labels = pd.DataFrame({"subset": "all", **{name: table[name].to_numpy() for name in kept}})
    return TokenSet(name, tokens, mask, _PROMPT - 1, labels)


def _check(sets: dict[str, TokenSet], entangled: bool = False) -> None:
    """Nobody may be in two forget sets, in both held-out parts of retain, or on both sides.

    Where the sides are ``entangled`` people may be on both, but no fact.
    """
    forget = {split: join(split, sets[split], sets[f"{split}{TRAINED}"]) for split in FORGET_SPLITS}
    check_disjoint(forget)
    check_disjoint({name: sets[name] for name in ("retain_dev", "retain_test")})
    sides = {**forget, "retain": join("retain", *(sets[name] for name in RETAIN_SPLITS))}
    check_disjoint({name: _by_fact(part) for name, part in sides.items()} if entangled else sides)


def _by_fact(rows: TokenSet) -> TokenSet:
    """The rows with a family for each fact."""
    facts = rows.labels["family"] + " " + rows.labels["operation"]
    return replace(rows, labels=rows.labels.assign(family=facts))


def _words(relations: tuple[str, ...], entangled: bool) -> TaskWords:
    return TaskWords(
        forget="the facts to be forgotten" if entangled else "the forget people’s facts",
        retain="all other facts" if entangled else "the retain people’s facts",
        read_at="the question mark",
        read_mark="?",
        prompt="name, relation and wording",
        family="All questions about one person.",
        strata_note="Facts are asked in a wording that no model was trained on for them; beside it, V in the wordings "
        "that the original was trained on: what is known there only was a sentence, not a fact.",
        operations={relation: relation for relation in relations},
        strata={f"V{TRAINED}": "V in trained wordings"},
        targets={"answer": "identity"},
    )
