"""Calibration: the truth does not come from an estimate, anchors are exact, and a turned basis fools whom it must."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import calibration, erasure, theory
from undo_probe.persian_rug.calibration import calibrate, readings, scores, truth, world

SMALL = {"n_s": 64, "p": 0.2, "rows": 300, "doses": [0.0, 0.5, 1.0]}
MOVED = {"transferred probe", "depth", "relative_distance", "cosine"}


@pytest.fixture(scope="module")
def cells() -> Any:
    return calibrate(**SMALL, seeds=[0])


def test_the_truth_is_that_of_theory() -> None:
    whole, gone = truth(0.25, 0.045, 0.1, 1.0, 64, 1024), truth(0.25, 0.045, 0.1, 0.0, 64, 1024)
    assert whole.r2 == pytest.approx(0.25) and whole.bits == pytest.approx(-np.log2(0.75) / 2)
    assert whole.relearned == erasure.after_relearning(whole.r2, 0.045, 64, 1024)
    assert gone.r2 == gone.bits == 0 and gone.relearned > theory.variance(0.045)
    series = truth(0.25, 0.045, 0.1, np.array(calibration.DOSES), 64, 1024)
    assert (np.diff(series.r2) > 0).all() and (np.diff(series.relearned) < 0).all()


def test_anchors_read_nought_and_one_and_hidden_models_know_all(cells: Any) -> None:
    on_scale = cells[(cells["scale"] == "survival") & (cells["measure"] != "on/off probe")]
    ends = on_scale.set_index(["model", "dose"])["value"]
    assert ends["dose", 0.0].to_numpy() == pytest.approx(0, abs=1e-9)
    assert ends["dose", 1.0].to_numpy() == pytest.approx(1, abs=1e-9)
    hidden = on_scale[on_scale["model"] == "hidden"].set_index("measure")["value"]
    assert hidden.drop("behaviour").to_numpy() == pytest.approx(1, abs=1e-9)
    assert (hidden["behaviour"] < 0.5).all()


def test_a_measure_that_cannot_tell_the_anchors_apart_has_no_survival(cells: Any) -> None:
    """So few rows are too few for the logistic probe: the suite's own gate leaves it out, and it is not scored."""
    weak = cells[cells["measure"] == "on/off probe"]
    known = weak.loc[(weak["model"] == "dose") & (weak["dose"] == 0.5), "value"].notna()
    assert not known.all() and not cells.loc[cells["measure"] == "probe", "value"].isna().any()
    assert scores(cells).set_index("measure")["cells"]["on/off probe"] == known.sum()


def test_a_turned_original_moves_cosine_and_not_cka_nor_the_truth() -> None:
    at = world(64, 0.25, 0.2, 0.1, seed=0, rows=300)
    ablated, turned = erasure.ablate_encoder(at.model, at.forget), erasure.rotate(at.model, seed=5)
    before, after = (dict[str, Any](readings(model, at, ablated)) for model in (at.model, turned))
    assert torch.allclose(erasure.readable(turned), erasure.readable(at.model), atol=1e-6)
    assert before["cosine"].rows == pytest.approx(1) and after["cosine"].rows.mean() < 0.5
    assert after["CKA"].value == pytest.approx(before["CKA"].value, abs=1e-6)
    assert after["probe"].rows == pytest.approx(before["probe"].rows, abs=1e-6)


def test_measures_that_a_turn_moves_are_marked(cells: Any) -> None:
    found: Any = scores(cells).set_index(["measure", "scale"])
    marked = found[found["basis_dependent"]].index
    assert {measure for measure, _ in marked} == MOVED
    ranked = found.loc[[(name, "survival") for name in ("probe", "CKA", "cosine", "transferred probe")]]
    assert ranked["rank"].to_list() == [1, 1, 1, 1]
    assert ranked["rank_twins"].to_list()[:2] == [1, 1] and (ranked["rank_twins"].iloc[2:] < 0.6).all()
    scored = found.loc[[("probe", "survival"), ("probe", "R2")], "cells"]
    assert scored.to_list() == [1, 3]  # of survival the anchors are not


def test_the_error_of_the_fit_is_taken_off(cells: Any) -> None:
    found: Any = scores(cells).set_index(["measure", "scale"])["bias"]
    assert found["probe", "R2"] < -0.02 and abs(found["probe, corrected", "R2"]) < 0.03


def test_scores_are_what_they_are_called() -> None:
    lines = [
        {"seed": seed, "model": model, "dose": dose, "measure": "m", "scale": "survival", "value": value,
         "low": value - 0.1, "high": value + 0.1, "true": dose, "true_bits": dose**2, "relearned": 1 - dose}
        for seed, shift in ((0, 0.05), (1, 0.25))
        for model, turn in (("dose", 0.0), ("twin", -0.5))
        for dose in (0.0, 0.5, 1.0)
        for value in [dose + (shift if dose == 0.5 else 0) + turn]
    ]  # fmt: skip
    hidden = [{**lines[2], "model": "hidden", "value": 0.75}]
    found: Any = scores(pd.DataFrame(lines + hidden))
    line = found.iloc[0]
    assert len(found) == 1 and line["cells"] == 2
    assert (line["bias"], line["error"], line["worst"]) == pytest.approx((0.15, 0.1, 0.15))
    assert line["bias_bits"] == pytest.approx(0.4) and line["coverage"] == 0.5
    assert line["rank"] == 1 and line["rank_twins"] < 1
    assert (line["twin"], line["hidden"], line["basis_dependent"]) == pytest.approx((0.5, 0.75, True))


def test_doses_without_anchors_are_refused() -> None:
    with pytest.raises(UndoProbeError, match=r"the doses are \[0.0, 0.5\]: expected 0 and 1 among them"):
        calibrate(doses=[0.0, 0.5])
