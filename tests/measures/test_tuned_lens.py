"""The tuned lens on made-up states whose best translator is known, and on a small model that knows its task."""

import numpy as np
import pytest
import tiny
import torch
from basis import reordered
from torch import Tensor

from undo_probe.activations import residual_names
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores
from undo_probe.measures.lens import decode
from undo_probe.measures.patching import plain_bits
from undo_probe.measures.stitches import answer_states, asked_rows, fit_rows, fit_stitches
from undo_probe.measures.tuned_lens import (
    TunedLens,
    fit_measures,
    fit_tuned_lens,
    task_lens,
    tuned_lens_measures,
)
from undo_probe.models import HookedTransformer

FIRST, MIDDLE, LAST = residual_names(tiny.model())


def read(model: HookedTransformer, lens: TunedLens) -> dict[tuple[str, str, str, str | None], ItemScores]:
    maps = fit_stitches(model, lens.original, tiny.small_task()).maps
    found = tuned_lens_measures(model, tiny.small_task(), lens, maps)
    return {(f.measure, f.task_split, f.subset, f.layer): f for f in found}


@pytest.fixture(scope="module")
def lens() -> TunedLens:
    return task_lens(tiny.knowing(), tiny.small_task(), seed=1)


def made_up(n: int = 400) -> tuple[HookedTransformer, dict[str, Tensor], Tensor]:
    """Final states that are an affine map of the middle ones, and a first layer that holds nothing."""
    draw = torch.Generator().manual_seed(0)
    model = tiny.model(seed=2)
    middle = torch.randn(n, 16, generator=draw)
    final = 2 * middle @ torch.randn(16, 16, generator=draw) + 3
    return model, {FIRST: torch.ones(n, 16), MIDDLE: middle, LAST: final}, torch.arange(n) % 4 == 0


def divergence(model: HookedTransformer, got: Tensor, states: Tensor) -> float:
    """Written out a second time: mean KL from the final distribution, in nats."""
    p, q = (x.double().softmax(-1) for x in (decode(model, states), got))
    return float((p * (p / q).log()).sum(-1).mean())


def test_an_affine_layer_is_translated_and_an_empty_one_gives_the_mean() -> None:
    model, states, choose = made_up()
    found = fit_tuned_lens(model, states, choose)
    assert divergence(model, found.logits(MIDDLE, states[MIDDLE]), states[LAST]) < 1e-4
    assert divergence(model, decode(model, states[MIDDLE]), states[LAST]) > 0.1
    first = found.logits(FIRST, states[FIRST])
    torch.testing.assert_close(first, first[:1].expand_as(first))
    torch.testing.assert_close(found.logits(LAST, states[LAST]), decode(model, states[LAST]))


def test_steps_only_ever_improve_on_the_states_that_choose() -> None:
    model, states, choose = made_up()
    noise = torch.randn(states[MIDDLE].shape, generator=torch.Generator().manual_seed(1))
    states[MIDDLE] = states[MIDDLE] + 0.5 * noise
    missed = [
        divergence(
            model,
            fit_tuned_lens(model, states, choose, seed, steps).logits(MIDDLE, states[MIDDLE][choose]),
            states[LAST][choose],
        )
        for seed, steps in ((0, 0), (0, 60), (0, 60), (1, 60))
    ]
    plain = divergence(model, decode(model, states[MIDDLE][choose]), states[LAST][choose])
    assert plain >= missed[0] > missed[1] > 0
    assert missed[1] == missed[2] != missed[3]


def test_on_unseen_retain_rows_it_misses_less_than_the_logit_lens(lens: TunedLens) -> None:
    found = {(i.task_split, i.layer): i for i in fit_measures(tiny.small_task(), lens)}
    assert set(found) == {(split, hook) for split in ("forget", "retain") for hook in (FIRST, MIDDLE, LAST)}
    middle = found["retain", MIDDLE]
    assert 0 < middle.values.mean() < 0.8 * (middle.control_value or 0)
    assert found["forget", LAST].values.max() == found["forget", LAST].control_value == 0
    rows = fit_rows(tiny.small_task(), seed=1)
    assert int(rows.answer_mask[:, 1:].sum()) == lens.n
    assert not set(rows.families) & set(asked_rows(tiny.small_task(), "retain").families)


def test_it_reads_the_models_answer_at_the_end_and_nothing_apart_in_the_original(lens: TunedLens) -> None:
    found = read(tiny.knowing(), lens)
    for split in ("forget", "retain"):
        bits = plain_bits(tiny.knowing(), asked_rows(tiny.small_task(), split))
        last = found["lens_log_probability", split, "tuned", LAST].values
        np.testing.assert_allclose(last, bits, atol=1e-5)
    apart = [i.values.max() for (m, _, subset, _), i in found.items() if (m, subset) == ("lens_kl", "tuned")]
    assert len(apart) == 6
    assert max(apart) == 0


def test_another_basis_is_read_only_after_the_map(lens: TunedLens) -> None:
    found = read(reordered(tiny.knowing()), lens)
    raw, mapped = (
        found["lens_kl", "retain", subset, LAST].values.mean() for subset in ("tuned", "tuned, mapped")
    )
    assert mapped < 0.05 < 2 < raw


def test_a_lens_that_cannot_be_fitted_or_read_says_why(lens: TunedLens) -> None:
    model, states, choose = made_up(20)
    with pytest.raises(UndoProbeError, match=r"needs states at 'blocks.1.hook_resid_post'.* got blocks.0"):
        fit_tuned_lens(model, {FIRST: states[FIRST]}, choose)
    with pytest.raises(UndoProbeError, match="20 of 20 states that choose"):
        fit_tuned_lens(model, states, torch.ones(20, dtype=torch.bool))
    with pytest.raises(UndoProbeError, match=r"no translator for 'hook_embed': it was fitted at blocks\.0"):
        lens.logits("hook_embed", states[FIRST])


def test_the_last_states_are_those_the_answer_is_read_from(lens: TunedLens) -> None:
    rows = asked_rows(tiny.small_task(), "forget")
    states = answer_states(lens.original, rows, [LAST])[LAST]
    logits = tiny.logits(lens.original, rows.tokens)[:, :-1][rows.answer_mask[:, 1:]]
    torch.testing.assert_close(lens.logits(LAST, states), logits)
