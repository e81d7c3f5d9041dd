"""Attacks: what it takes to bring a capability back."""

from undo_probe.attacks.envelope import AttackTable
from undo_probe.attacks.relearn import attack, relearn

__all__ = ["AttackTable", "attack", "relearn"]
