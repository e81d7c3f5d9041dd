"""Attacks: what it takes to bring a capability back."""

from undo_probe.attacks.arms import attack
from undo_probe.attacks.envelope import AttackTable
from undo_probe.attacks.one_model import relearn

__all__ = ["AttackTable", "attack", "relearn"]
