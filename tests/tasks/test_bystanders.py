"""Who stands nearest to what is forgotten."""

import numpy as np

from undo_probe.task_config import ArithmeticConfig, InventedConfig
from undo_probe.tasks.arithmetic import ArithmeticTask
from undo_probe.tasks.bystanders import FORGOTTEN, bystanders
from undo_probe.tasks.invented import InventedTask


def test_siblings_of_invented_people_bear_names_of_forgotten_ones() -> None:
    task = InventedTask(InventedConfig(people=120, relations=2), seed=1)
    found = bystanders(task)
    siblings, retain = found["siblings"].labels, found["retain"].labels
    assert 0 < len(siblings) < len(retain)
    assert "neutral" not in found
    for name in ("first", "last"):
        borne = {each for split in FORGOTTEN for each in task.rows(split).labels[name]}
        assert set(siblings[name]) <= borne
    assert not set(siblings["family"]) & {each for split in FORGOTTEN for each in task.rows(split).families}
    # nobody that is reported on
    assert not set(retain["family"]) & set(task.rows("retain_test").families)


def test_siblings_of_entangled_products_are_the_products_that_stay() -> None:
    task = ArithmeticTask(ArithmeticConfig(add_max=9, mul_max=8, forget_factors=(3,)), seed=0)
    siblings = bystanders(task)["siblings"]
    assert set(np.unique(siblings.operations)) == {"*", "/"}
