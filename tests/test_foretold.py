"""Which measure orders the stages as relearning does: on made-up readings whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from undo_probe.errors import UndoProbeError
from undo_probe.files import write_json
from undo_probe.foretold import BEFORE, cells, foretelling, partial_correlation
from undo_probe.intervals import rank_correlation
from undo_probe.records import Arm, Reading, Scorecard, reading_table
from undo_probe.replicates import read_runs

ARMS = [Arm("unlearned", method) for method in ("maxent", "graddiff", "rmu")] + [
    Arm("distilled", "maxent", alpha, variant=variant)
    for alpha in (0.4, 0.8)
    for variant in ("", "twin", "weak teacher", "jitter")
]
LAYERS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def made_up(seed: int, ends: bool = True) -> pd.DataFrame:
    """The attack gives back what is left; depth says exactly that, the weights nothing, accuracy a bit."""
    draw = np.random.default_rng(seed)
    left = draw.permutation(len(ARMS)) / len(ARMS)
    found: list[Reading] = []
    for arm, share in zip(ARMS, left, strict=True):
        found += readings(arm.replace(seed=seed), float(share), draw)
    if ends:
        found += readings(Arm("original", seed=seed), 9.0, draw)
        found += readings(Arm("noised", "maxent", 0.4, seed), 9.0, draw)
    table = reading_table(found)
    return table.assign(arm=[reading.arm.name for reading in found])


def readings(arm: Arm, left: float, draw: np.random.Generator) -> list[Reading]:
    def one(
        measure: str, subset: str, value: float, layer: str | None = None, control: float | None = None
    ) -> Reading:
        return Reading(arm, measure, "forget", subset, layer, value, control_value=control)

    twin = 0.25 if arm.alpha == 0.4 else None
    return [
        one("relearned", "step 10", 0.5),
        one("relearned", "step 200", left),
        one("accuracy", "V", 0.3 * left + float(draw.normal(0, 0.2))),
        one("depth", "raw, without the last", 1 - left, control=twin),
        one("weight_distance", "all weights", float(draw.normal())),
        *(
            one("lens_log_probability", "own", value, layer)
            for value, layer in zip((left, -9 * left), LAYERS, strict=True)
        ),
    ]


def test_cells_are_the_attacked_stages_in_between_at_the_last_step() -> None:
    table = cells(made_up(0))
    assert len(table) == len(ARMS)
    assert not set(table["arm"]) & {"original", "noised-maxent-0.4"}
    assert sorted(table["relearned"]) == pytest.approx(np.arange(len(ARMS)) / len(ARMS))
    np.testing.assert_allclose(table["depth"], table["relearned"] - 1)  # less deep is more left
    np.testing.assert_allclose(table["lens, own"], table["relearned"])  # the last layer left out
    at_four = table[table["alpha"] == 0.4]
    np.testing.assert_allclose(at_four["depth beyond the twin's"], at_four["relearned"] - 0.75)
    assert np.isnan(table[table["alpha"] == 0.8]["depth beyond the twin's"].to_numpy(float)).all()
    assert "tuned lens" not in table


def test_what_orders_the_stages_comes_first_with_an_interval_over_seeds() -> None:
    table = cells(pd.concat([made_up(seed) for seed in range(6)], ignore_index=True))
    found = {line.predictor: line for line in foretelling(table)}
    for name in ("depth", "lens, own"):
        for each in (found[name].overall, found[name].within, found[name].beyond):
            assert each is not None
            assert each.value == pytest.approx(1)
            assert each.n == 6
    weights = found["weights"].overall
    assert weights is not None
    assert weights.low < 0 < weights.high < 0.9
    assert found[BEFORE].beyond is None
    assert list(found)[-1] in (BEFORE, "depth beyond the twin's")
    assert found["depth"].cells == 6 * len(ARMS)


def test_the_partial_correlation_takes_the_third_ranks_out_of_both() -> None:
    draw = np.random.default_rng(1)
    given = draw.normal(size=40)
    a, b = given + draw.normal(size=40), given + draw.normal(size=40)
    ranks = [stats.rankdata(x) for x in (a, b, given)]
    left = [x - np.polyval(np.polyfit(ranks[2], x, 1), ranks[2]) for x in ranks[:2]]
    expected = float(np.corrcoef(*left)[0, 1])
    assert partial_correlation(a, b, given) == pytest.approx(expected)
    assert abs(expected) < rank_correlation(a, b)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert np.isnan(partial_correlation(a[:5], b[:5], given[:5]))
    assert np.isnan(partial_correlation(given, b, given))
    assert np.isnan(rank_correlation(a, np.ones(40)))


def test_runs_that_were_not_attacked_or_scored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="was attacked: run `undo-probe attack`"):
        cells(made_up(0).query("measure != 'relearned'"))
    with pytest.raises(UndoProbeError, match=r"expected scored runs .*: found seeds \[\]"):
        read_runs([tmp_path])
    card = Scorecard((Reading(ARMS[0], "accuracy", "forget", value=0.5),), {"inner_layer": "x"})
    write_json(tmp_path / "a" / "scorecard.json", card.to_dict())
    with pytest.raises(UndoProbeError):
        read_runs([tmp_path])  # a scorecard alone is no run
