from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from undo_probe.activation_store import ActivationStore
from undo_probe.config import ProbeConfig
from undo_probe.errors import UndoProbeError
from undo_probe.harvesting import harvest
from undo_probe.measures.stored_probes import probe

ROWS, N_POS = 120, 5
DRAW = np.random.default_rng(0)
TOKENS = torch.from_numpy(DRAW.integers(0, 4, (ROWS, N_POS)))
GROUPS = np.arange(ROWS) // 3
QUICK = ProbeConfig(folds=3, penalties=(1e-2, 1e-1), shuffles=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("probed")
    return harvest(tiny.model(), TOKENS, "resid_post", folder, shard_mb=0.01, quiet=True)


def test_a_token_that_is_there_is_read_and_one_that_is_not_yet_is_not(store: ActivationStore) -> None:
    labels = {"own": TOKENS[:, 2], "next": TOKENS[:, 3]}
    table = probe(store, labels, GROUPS, position=2, config=QUICK)
    assert list(table.layer.unique()) == list(store.points)
    by = table.set_index("label")
    assert (by.loc["own", "accuracy"] > 0.95).all()
    assert (by.loc["own", "bits"] > 1.5).all()
    assert (by.loc["next", "bits_low"] < 0.1).all()
    assert (by.loc["next", "accuracy_low"] < by.loc["next", "majority"] + 0.1).all()
    assert (table.shuffled_accuracy < 0.5).all()
    assert (table.accuracy_low <= table.accuracy).all()
    assert (table.n == ROWS).all()
    assert (table.groups == 40).all()
    assert (table.note == "").all()


def test_bits_are_beyond_the_context_that_is_given(store: ActivationStore) -> None:
    label = TOKENS[:, 2].numpy()
    alone = probe(store, label, GROUPS, position=2, config=QUICK)
    known = probe(store, label, GROUPS, position=2, context=np.eye(4)[label], config=QUICK)
    assert (alone.bits > 1.5).all()
    assert (known.bits.abs() < 0.1).all()
    assert (known.context_accuracy == 1).all()
    assert (known.accuracy == alone.accuracy).all()


def test_one_label_an_item_probes_all_positions_at_once(store: ActivationStore) -> None:
    place = store.positions
    table = probe(store, place, GROUPS[store.rows], config=QUICK)
    assert (table.accuracy > 0.8).all()  # by chance 0.2
    assert (table.n == ROWS * N_POS).all()
    assert (table.groups == 40).all()


def test_columns_of_a_table_keep_their_names(store: ActivationStore) -> None:
    labels = pd.DataFrame({"own": TOKENS[:, 2], "first": TOKENS[:, 0]}, index=np.arange(ROWS) + 7)
    both = probe(store, labels, GROUPS, position=2, config=QUICK)
    own = pd.Series(TOKENS[:, 2].numpy(), index=labels.index, name="own")
    one = probe(store, own, GROUPS, position=2, config=QUICK)
    assert list(both.label) == ["own", "first"] * 2
    assert list(one.label) == ["own"] * 2
    assert (one.accuracy > 0.95).all()


def test_what_does_not_fit_is_refused(store: ActivationStore) -> None:
    own = TOKENS[:, 2]
    with pytest.raises(
        UndoProbeError, match=r"label has 120 entries for 600 items \(120 rows, 5 positions\)"
    ):
        probe(store, own, GROUPS)
    with pytest.raises(UndoProbeError, match="groups has 119 entries for 120 items"):
        probe(store, own, GROUPS[:-1], position=2)
    with pytest.raises(UndoProbeError, match="strata has 3 entries"):
        probe(store, own, GROUPS, position=2, strata=[1, 2, 3])
    with pytest.raises(
        UndoProbeError, match=r"flat has shape \(120,\) and 1 classes: a probe tells at least"
    ):
        probe(store, {"flat": np.zeros(ROWS)}, GROUPS, position=2)
    with pytest.raises(UndoProbeError, match=r"label has shape \(120, 5\) .* as a dict or a DataFrame"):
        probe(store, TOKENS, GROUPS, position=2)
    with pytest.raises(UndoProbeError, match="2 families cannot be divided into 3 parts"):
        probe(store, own, GROUPS > 20, position=2, config=QUICK)


def test_heads_are_laid_side_by_side(tmp_path: Path) -> None:
    heads = harvest(tiny.model(), TOKENS, "attn.hook_z", tmp_path, positions=0, quiet=True)
    table = probe(heads, TOKENS[:, 0], GROUPS, config=QUICK)
    assert (table.accuracy > 0.95).all()
