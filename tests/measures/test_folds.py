import numpy as np
import pytest

from undo_probe.errors import UndoProbeError
from undo_probe.measures.folds import family_folds, held_out_fold, sample_families, shuffle_within

FAMILIES = np.repeat([f"f{i}" for i in range(30)], np.tile([1, 4, 2], 10))


def test_every_row_is_tested_once_and_no_family_is_divided() -> None:
    folds = family_folds(FAMILIES, 5, seed=0)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(FAMILIES)))
    for fold in folds:
        parts = [set(FAMILIES[rows]) for rows in (fold.fit, fold.choose, fold.test)]
        assert not parts[0] & parts[1] and not parts[2] & (parts[0] | parts[1])
        assert sum(map(len, parts)) == 30
        assert abs(len(fold.test) - len(FAMILIES) / 5) <= 4


def test_the_seed_decides_the_folds() -> None:
    tests = [[fold.test.tolist() for fold in family_folds(FAMILIES, 3, seed)] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_a_fold_can_be_held_out_by_hand() -> None:
    test = np.flatnonzero(FAMILIES == "f4")
    fold = held_out_fold(FAMILIES, test, seed=0)
    assert len(fold.train) + len(test) == len(FAMILIES)
    with pytest.raises(UndoProbeError, match="2 families cannot be divided into 5"):
        family_folds(np.array(["a", "a", "b"]), 5, seed=0)


def test_shuffling_keeps_each_stratums_labels() -> None:
    labels = np.arange(40)[:, None] % 7
    strata = np.array(["x", "y"] * 20)
    shuffled = shuffle_within(labels, strata, seed=0)
    assert (shuffled != labels).any()
    for stratum in "xy":
        assert sorted(shuffled[strata == stratum, 0]) == sorted(labels[strata == stratum, 0])


def test_sampled_families_are_whole_and_few_enough() -> None:
    rows = sample_families(FAMILIES, 25, seed=0)
    assert 20 <= len(rows) <= 25
    assert not set(FAMILIES[rows]) & set(np.delete(FAMILIES, rows))
