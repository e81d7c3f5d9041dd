"""How families are cut into splits, and T and V into folds."""

from dataclasses import dataclass

import numpy as np
import pytest

from undo_probe.task_config import FOLDS
from undo_probe.tasks.dealing import by_shares, dealt

SHARES = (0.4, 0.4, 0.1, 0.1)


@dataclass(frozen=True)
class Thing:
    family: str


def test_shares_cut_an_order_into_parts_that_make_it_up() -> None:
    order = np.random.default_rng(0).permutation(40)
    parts = by_shares(order, SHARES)
    assert [len(part) for part in parts] == [16, 16, 4, 4]
    assert np.concatenate(parts).tolist() == order.tolist()


@pytest.mark.parametrize("count", [11, 40, 97])
def test_every_item_of_t_and_v_is_in_v_once_and_the_others_stay(count: int) -> None:
    order = np.random.default_rng(count).permutation(count)
    whole = by_shares(order, SHARES)
    both = set(np.concatenate(whole[:2]).tolist())
    dealings = [by_shares(order, SHARES, fold) for fold in range(FOLDS)]
    assert sorted(item for _, v, *_ in dealings for item in v.tolist()) == sorted(both)
    for t, v, *rest in dealings:
        assert set(t.tolist()) | set(v.tolist()) == both and not set(t.tolist()) & set(v.tolist())
        assert [part.tolist() for part in rest] == [part.tolist() for part in whole[2:]]
    sizes = [len(v) for _, v, *_ in dealings]
    assert max(sizes) - min(sizes) <= 1


def test_a_fold_leaves_retain_as_it_was() -> None:
    things = {side: [Thing(f"{side} {number}") for number in range(20)] for side in ("forget", "retain")}
    plain, folded = (dealt(things, SHARES, (0.6, 0.15, 0.25), 3, fold) for fold in (None, 2))
    assert {name: part for name, part in plain.items() if name.startswith("retain")} == {
        name: part for name, part in folded.items() if name.startswith("retain")
    }
    assert plain["forget_V"] != folded["forget_V"]
