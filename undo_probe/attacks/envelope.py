"""What a sweep of attacks says: per-rate curves, a fixed rate's curve, and the unbiased running maximum."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from undo_probe.config import AttackConfig
from undo_probe.errors import UndoProbeError
from undo_probe.randomness import derive_seed


@dataclass(frozen=True)
class AttackTable:
    """All attacks on one model: scores by rate, attack seed, evaluation step and row.

    Scores are right or wrong (bool), or numbers of which higher is more capable. ``forget`` are the rows of V,
    ``retain`` held-out retain rows; ``families`` is the cluster of each forget row, ``half`` says into which half of
    V it fell (whole families).
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    forget: Shaped[np.ndarray, "rate seed step row"]
    retain: Shaped[np.ndarray, "rate seed step retain_row"]
    families: np.ndarray
    half: np.ndarray

    def at_rate(self, rate: float) -> Float[np.ndarray, "step row"]:
        """Score of each forget row at one rate, averaged over attack seeds."""
        return self.forget[self._index(rate)].mean(axis=0)

    def retain_at(self, rate: float) -> Float[np.ndarray, "step retain_row"]:
        """Score of each retain row at one rate, averaged over attack seeds."""
        return self.retain[self._index(rate)].mean(axis=0)

    def _index(self, rate: float) -> int:
        if rate not in self.rates:
            raise UndoProbeError(
                f"no attack was run at rate {rate:g}: there are {', '.join(f'{r:g}' for r in self.rates)}"
            )
        return self.rates.index(rate)

    def best_rate(self, keep: np.ndarray | None = None) -> float:
        """The rate with the highest mean score reached at any step on the forget rows that ``keep`` marks."""
        reached = self._reached(keep)
        return self.rates[int(reached.argmax())]

    def edge(self, keep: np.ndarray | None = None) -> int:
        """-1 or 1 where the lowest or highest rate is the best one, and not by chance; else 0.

        By chance means: within one standard error (families as clusters) of the best rate inside the grid.
        """
        reached = self._reached(keep)
        best = int(reached.argmax())
        if 0 < best < len(reached) - 1 or len(reached) < 3:
            return 0
        inside = float(reached[1:-1].max())
        error = self._error(best, float(reached[best]), keep)
        if reached[best] <= inside + error:
            return 0
        return -1 if best == 0 else 1

    def _error(self, rate: int, reached: float, keep: np.ndarray | None) -> float:
        """Standard error of what a rate reached, families as clusters: binomial for right or wrong."""
        families = self.families if keep is None else self.families[keep]
        names, member = np.unique(families, return_inverse=True)
        n = len(names)
        if self.forget.dtype == bool:
            return float(np.sqrt(max(reached * (1 - reached), 0.25 / n) / n))
        rows = (self.forget if keep is None else self.forget[..., keep])[rate].mean(axis=0)
        best = rows[int(rows.mean(axis=1).argmax())]
        means = np.bincount(member, weights=best) / np.bincount(member)
        return float(means.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0

    def _reached(self, keep: np.ndarray | None) -> np.ndarray:
        rows = self.forget if keep is None else self.forget[..., keep]
        return rows.mean(axis=(1, 3)).max(axis=1)

    def cumulative_max(
        self, keep: np.ndarray | None = None, utility: float | None = None
    ) -> Float[np.ndarray, "step row"]:
        """What the attacker has reached by each step, without the bias of choosing on the rows reported.

        For every evaluation step, rate and step so far are chosen on one half of V and the score there
        is read on the other half, and the reverse. A plain maximum over rates would favour models at which
        every rate fails, by luck alone.

        Args:
            keep: forget rows that take part; all by default. Others are returned as NaN.
            utility: choices are limited to points whose mean retain score is at least this share of what the
                model had before the attack.

        Returns:
            Score (averaged over attack seeds) of each row, shape (step, row).
        """
        keep = np.ones(len(self.families), dtype=bool) if keep is None else keep
        average = self.forget.mean(axis=1)
        allowed = self._allowed(utility)
        out = np.full((len(self.steps), len(self.families)), np.nan)
        for side in (0, 1):
            choose, report = keep & (self.half != side), keep & (self.half == side)
            score = np.where(allowed, average[:, :, choose].mean(axis=2), -np.inf)
            for index in range(len(self.steps)):
                # earliest step, then lowest rate, among equals
                so_far = score[:, : index + 1].T
                step, rate = np.unravel_index(int(so_far.argmax()), so_far.shape)
                out[index, report] = average[rate, step, report]
        return out

    def _allowed(self, utility: float | None) -> Bool[np.ndarray, "rate step"]:
        if utility is None:
            return np.ones((len(self.rates), len(self.steps)), dtype=bool)
        retain = self.retain.mean(axis=(1, 3))
        return retain >= utility * retain[:, :1]


def halves(families: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
    """0 or 1 for each row: families divided at random into two halves."""
    names = np.unique(np.asarray(families))
    if len(names) < 2:
        raise UndoProbeError(
            f"V has {len(names)} families: at least 2 are needed to choose on one half and report on the other"
        )
    order = np.random.default_rng(derive_seed(seed, "halves of V")).permutation(len(names))
    side = dict(zip(names, order % 2, strict=True))
    return np.array([side[family] for family in families])


def extended(
    rates: Sequence[float], tables: Iterable[AttackTable], config: AttackConfig, keep: np.ndarray
) -> list[float]:
    """The rates, and one more by a factor of 3 on each side where some model's best rate lies at the edge.

    At most ``config.max_extensions`` are added on either side of ``config.learning_rates``.
    """
    sides = {table.edge(keep) for table in tables}
    start = sorted(config.learning_rates)
    grown = list(rates)
    if -1 in sides and sum(rate < start[0] for rate in rates) < config.max_extensions:
        grown.insert(0, float(f"{rates[0] / 3:.3g}"))
    higher = float(f"{rates[-1] * 3:.3g}")
    # a rate of 1 or more is no rate
    if 1 in sides and sum(rate > start[-1] for rate in rates) < config.max_extensions and higher < 1:
        grown.append(higher)
    return grown
