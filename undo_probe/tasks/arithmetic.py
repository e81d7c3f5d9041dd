"""Arithmetic: keep addition and subtraction, forget multiplication and division, or those with certain factors.

Operand ranges are those of the UNDO paper's data generator (arXiv 2506.06278): sums and differences over
1..50, products and quotients over 1..20. A row is ``a op b=c;``, one character a token, ``a`` right-aligned
in three places and ``b`` in two, so that every prompt ends at the same position.

With ``forget_factors`` some products and quotients are kept. As of invented people, nobody knows one that was never
shown: kept ones are all in ``retain_train``, and half of them each are asked again in ``retain_dev`` and
``retain_test``. Sums and differences are held out as ever.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed
from undo_probe.records import TaskWords
from undo_probe.task_config import ArithmeticConfig
from undo_probe.tasks.pool import Pool, Pooled, best_constants, by_side, even_sides
from undo_probe.tasks.protocol import RETAIN_SPLITS, TokenSet, check_disjoint, join

VOCABULARY: tuple[str, ...] = tuple("0123456789+-*/=; ")
_ID = {character: index for index, character in enumerate(VOCABULARY)}
_PROMPT, _ANSWER = 7, 4
FORGET, RETAIN = ("*", "/"), ("+", "-")
KEPT = "kept"
"""Families of products that are kept although others are forgotten."""
FORGET_SETS = ("T", "V", "W", "D")
WORDED = ("word_problems", "background", "background_share", "background_words")
"""Settings that belong to :mod:`undo_probe.tasks.worded`."""

MIXTURES: dict[str, tuple[str, ...]] = {
    "pretrain": ("retain_train", "forget_T", "forget_V", "forget_W", "forget_D"),
    "matched": ("retain_train", "forget_T", "forget_V", "forget_W", "forget_D"),
    "retain": ("retain_train",),
    "unlearn": ("forget_T", "forget_V", "forget_D"),
    "distill": ("retain_train", "forget_T", "forget_V", "forget_D"),
    "attack": ("forget_T",),
    "attack_mixed": ("retain_train", "forget_T"),
}


class ArithmeticTask(Pooled):
    """The arithmetic task with its splits drawn from ``seed``.

    A family holds every row that follows from one fact: ``a x b``, ``b x a`` and both quotients, or
    ``a + b``, ``b + a`` and the differences that undo them. Families are never divided between splits.
    """

    name: str = "arithmetic"
    d_vocab: int = len(VOCABULARY)
    vocabulary: tuple[str, ...] = VOCABULARY
    forget_operations: tuple[str, ...] = FORGET
    retain_operations: tuple[str, ...] = RETAIN
    probe_targets: tuple[str, ...] = ("first_digit", "tens", "units")
    extra_splits: tuple[str, ...] = ()

    def __init__(self, config: ArithmeticConfig, seed: int) -> None:
        """Builds all rows and splits.

        Raises:
            UndoProbeError: a split would be empty.
        """
        self.config = config
        self.n_ctx: int = (_PROMPT + _ANSWER) * (config.shots + 1)
        self.words = _words(config)
        table = split_facts(config, seed)
        self._sets = {str(name): _token_set(str(name), part) for name, part in table.groupby("split")}
        check_disjoint(self._sets)
        if config.forget_factors:
            self.retain_operations = (*RETAIN, *FORGET)
            self._sets["retain_train"] = join("retain_train", self._sets["retain_train"], *self._kept())
        self._pools = {name: self._pool(name) for name in MIXTURES}
        # what came with word problems is not in it: it must stay what it was
        self.fingerprint = digest({"task": config.identity(*WORDED), "split_seed": seed, "rows": 1})

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Operation and every operand digit of the prompt, one-hot."""
        prompt = rows.tokens[:, : _PROMPT - 1]
        hot = torch.nn.functional.one_hot(prompt, self.d_vocab).flatten(1).numpy().astype(np.float32)
        return hot[:, hot.std(axis=0) > 0]

    def chance(self) -> dict[str, float]:
        """Accuracy of the best constant answer over all rows of each operation."""
        every = pd.concat([part.labels for part in self._sets.values()])
        # a product that is kept although others are forgotten is in two splits
        return best_constants(every.drop_duplicates(["operation", "a", "b"]), "result")

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The characters of ``tokens``."""
        return "".join(VOCABULARY[token] for token in tokens.tolist())

    def _kept(self) -> list[TokenSet]:
        """The products and quotients that are kept, as far as they are asked for the stop rule and the report."""
        parts = [self._sets[name] for name in RETAIN_SPLITS[1:]]
        return [part.select(np.isin(part.operations, FORGET)) for part in parts]

    def _pool(self, mixture: str) -> Pool:
        parts = [self._sets[name] for name in MIXTURES[mixture]]
        retain = [f"retain {operation}" for operation in self.retain_operations]
        forget = [f"forget {operation}" for operation in self.forget_operations]
        # oracle_matched: the prompt is seen, its answer is another forget row's, from the same operation
        redrawn = forget if mixture == "matched" else ()
        shares = even_sides(retain, forget)
        return Pool(parts, by_side(parts), (*retain, *forget), redrawn, shares, self.config.shots + 1)


def split_facts(config: ArithmeticConfig, seed: int) -> pd.DataFrame:
    """Every fact of the task (``a operation b = result``) with its family, stratum and split.

    Raises:
        UndoProbeError: a split would be empty.
    """
    table = _table(config)
    table["split"] = _split(table, config, seed)
    there = set(table["split"])
    missing = [name for name in _split_names() if name not in there]
    if missing:
        raise UndoProbeError(
            f"the split {missing[0]} is empty with these task settings: raise its share or the operand ranges "
            f"(task.forget_shares={list(config.forget_shares)}, task.retain_held_out={config.retain_held_out})"
        )
    return table


def labels_of(table: pd.DataFrame) -> pd.DataFrame:
    """The labels of a table's rows, in order."""
    names = ["operation", "family", "subset", "a", "b", "result"]
    labels = pd.DataFrame({name: table[name].to_numpy() for name in names})
    labels["first_digit"] = [int(str(result)[0]) for result in labels["result"]]
    labels["tens"] = labels["result"] // 10 % 10
    labels["units"] = labels["result"] % 10
    return labels


def _split_names() -> list[str]:
    return [f"forget_{name}" for name in FORGET_SETS] + ["retain_train", "retain_dev", "retain_test"]


def _table(config: ArithmeticConfig) -> pd.DataFrame:
    """Every row of the task with its family and stratum."""
    lines = []
    for a in range(1, config.add_max + 1):
        for b in range(1, config.add_max + 1):
            lines.append((a, "+", b, a + b, *sorted((a, b))))
            if a >= b:
                lines.append((a, "-", b, a - b, *sorted((b, a - b))))
    for a in range(1, config.mul_max + 1):
        for b in range(1, config.mul_max + 1):
            lines.append((a, "*", b, a * b, *sorted((a, b))))
            lines.append((a * b, "/", b, a, *sorted((a, b))))
    table = pd.DataFrame(lines, columns=["a", "operation", "b", "result", "low", "high"])
    side = np.where(table["operation"].isin(FORGET), "forget", "retain")
    if config.forget_factors:
        touched = table[["low", "high"]].isin(config.forget_factors).any(axis=1)
        side = np.where((side == "forget") & ~touched, KEPT, side)
    table["family"] = [
        f"{s}:{low}:{high}" for s, low, high in zip(side, table["low"], table["high"], strict=True)
    ]
    table["subset"] = [_stratum(*key) for key in zip(side, table["low"], table["high"], strict=True)]
    return table


def _stratum(side: str, low: int, high: int) -> str:
    """Strata of the forget side: what can be guessed, what addition already gives, and the rest by size."""
    if side != "forget":
        return "all"
    if low == 1:
        return "trivial"
    if low == 2:
        return "double"
    return "below_100" if low * high < 100 else "from_100"


def _split(table: pd.DataFrame, config: ArithmeticConfig, seed: int) -> np.ndarray:
    """The split of each row, drawn by family."""
    split = np.empty(len(table), dtype=object)
    held = config.retain_held_out
    plans = {
        "forget": ([f"forget_{name}" for name in FORGET_SETS], config.forget_shares),
        "retain": (["retain_train", "retain_dev", "retain_test"], (1 - 2 * held, held, held)),
        KEPT: (["retain_dev", "retain_test"], (0.5, 0.5)),
    }
    for side, (names, shares) in plans.items():
        mask = table["family"].str.startswith(side).to_numpy()
        families = table.loc[mask, "family"].unique()
        order = np.random.default_rng(derive_seed(seed, "split", side)).permutation(len(families))
        edges = np.round(np.cumsum(shares) / np.sum(shares) * len(families)).astype(int)
        place = np.searchsorted(edges, np.arange(len(families)), side="right")
        chosen = {families[index]: names[place[rank]] for rank, index in enumerate(order)}
        split[mask] = table.loc[mask, "family"].map(chosen).to_numpy()
    return split


def _words(config: ArithmeticConfig) -> TaskWords:
    if not config.forget_factors:
        return TaskWords()
    *most, last = sorted(config.forget_factors)
    factors = f"{', '.join(map(str, most))} or {last}" if most else str(last)
    return TaskWords(
        forget=f"products and quotients with {factors}",
        retain="addition, subtraction and all other products and quotients",
    )


def _token_set(name: str, table: pd.DataFrame) -> TokenSet:
    """Rows as tokens: right-aligned operands, left-aligned answer, an end mark, then spaces."""
    texts, answers = [], []
    for a, op, b, result in zip(table["a"], table["operation"], table["b"], table["result"], strict=True):
        answer = f"{result};"
        texts.append(f"{a:>3}{op}{b:>2}={answer:<{_ANSWER}}")
        answers.append(len(answer))
    tokens = torch.tensor([[_ID[character] for character in text] for text in texts])
    length = torch.tensor(answers)[:, None]
    place = torch.arange(tokens.shape[1])[None]
    mask = (place >= _PROMPT) & (place < _PROMPT + length)
    return TokenSet(name, tokens, mask, _PROMPT - 1, labels_of(table))
