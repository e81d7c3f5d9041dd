"""The table of erasures: what it says is met, and what it would say if theory were wrong."""

from typing import Any

import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.effects import divide, erasure_table

SMALL = {"n_s": 256, "p": 0.2, "phi": [0.1], "alpha": [0.2], "samples": [1.5, 4], "rows": 1000}


@pytest.fixture(scope="module")
def table() -> Any:
    return erasure_table(**SMALL, seeds=[0, 1])


def test_every_operation_is_beside_its_prediction(table: Any) -> None:
    operations = ["output ablation", "encoder ablation", "projection", "shrink and perturb", "relearning"]
    assert table["operation"].unique().tolist() == operations
    assert table["met"].all(), table
    assert (table["ratio"] == table["measured"] / table["predicted"]).all()
    assert (table["error"] > 0).all() and set(table["seeds"]) == {2}
    assert table.loc[table["operation"] == "relearning", "bar"].tolist() == [0.07, 0.05]


def test_the_bar_tells_one_erasure_from_another(table: Any) -> None:
    """Removing the same features helps the others or costs them: no prediction fits both."""
    kept = table[table["quantity"] == "loss, kept"].set_index("operation")
    wrong = kept["measured"]["projection"] / kept["predicted"]["encoder ablation"]
    assert abs(wrong - 1) > kept["bar"]["projection"]
    probes = table[table["quantity"] == "probe loss, forgotten"].set_index("operation")["measured"]
    assert probes["output ablation"] < 0.85 * min(probes["encoder ablation"], probes["projection"])


def test_one_seed_has_no_standard_error() -> None:
    found: Any = erasure_table(n_s=64, p=0.4, phi=[], alpha=[0.1], samples=[], seeds=[3], rows=100)
    assert found["error"].isna().all() and found["quantity"].tolist() == ["loss", "probe loss"]


def test_forget_and_kept_features_share_none() -> None:
    forget, keep = divide(50, 0.1, seed=1)
    assert len(forget) == 5 and sorted([*forget.tolist(), *keep.tolist()]) == list(range(50))
    assert torch.equal(divide(50, 0.1, seed=1)[0], forget) and not torch.equal(
        divide(50, 0.1, seed=2)[0], forget
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: erasure_table(seeds=[]), "no seed was given: expected at least one"),
        (lambda: divide(50, 0.001, 0), "phi = 0.001 of 50 features is 0 to forget"),
        (lambda: divide(50, 1.0, 0), "some to forget and some to keep"),
    ],
)
def test_what_makes_no_table_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(("r", "p"), [(0.25, 0.045), (0.5, 0.2)])
def test_erasures_cost_what_is_foretold(r: float, p: float) -> None:
    found: Any = erasure_table(r=r, p=p, phi=[0.05, 0.2], alpha=[0.1, 0.4], seeds=[0, 1])
    assert found["met"].all(), found[~found["met"]]
