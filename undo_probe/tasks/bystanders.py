"""What unlearning is not meant to touch, near and far: the sets on which its harm is measured."""

import numpy as np

from undo_probe.tasks.protocol import Task, TokenSet

FORGOTTEN = ("forget_T", "forget_V", "forget_D")
"""The sets that unlearning works on."""


def bystanders(task: Task) -> dict[str, TokenSet]:
    """Rows that are to stay as they are, by how near they lie to what is forgotten; none of them is reported on.

    ``retain`` are the task's development rows of retain. ``siblings`` are those of a relation (or operation) that is
    also forgotten; where rows name a person by first and last name, only people both of whose names some forgotten
    person bears. ``neutral`` is running text. The last two are left out where the task has none.
    """
    retain = task.rows("retain_dev")
    near = np.isin(retain.operations, task.forget_operations)
    if {"first", "last"} <= set(retain.labels):
        for name in ("first", "last"):
            borne = np.concatenate([task.rows(split).labels[name].to_numpy() for split in FORGOTTEN])
            near &= np.isin(retain.labels[name].to_numpy(), borne)
    found = {"retain": retain}
    if near.any():
        found["siblings"] = retain.select(near)
    if task.neutral:
        found["neutral"] = task.rows(task.neutral)
    return found
