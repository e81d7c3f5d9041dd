"""The noise stage: one draw on a copy, by parameter name."""

import pytest
import tiny
import torch
from test_models import TIE, tied_model

from undo_probe.errors import UndoProbeError
from undo_probe.models import content_hash, ties, weights
from undo_probe.perturb import shrink_and_perturb
from undo_probe.stages.noise import noise


def test_the_original_is_untouched_and_the_copy_follows_the_rule() -> None:
    model = tiny.model()
    before = content_hash(model)
    found = noise(model, alpha=0.6, beta=0.1, seed=3).model
    assert content_hash(model) == before
    expected = shrink_and_perturb(weights(model), 0.6, 0.1, seed=3)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(found).items())


def test_alpha_zero_gives_the_same_model() -> None:
    assert content_hash(noise(tiny.model(), 0.0, 1.0, seed=0).model) == content_hash(tiny.model())


def test_alpha_and_beta_one_forget_everything() -> None:
    lost = noise(tiny.knowing(), 1.0, 1.0, seed=0).model
    assert tiny.accuracy(lost, "forget_T") < 0.3 < 0.9 < tiny.accuracy(tiny.knowing(), "forget_T")
    # whatever the model was, the same noise is left
    other = weights(noise(tiny.half_trained(), 1.0, 1.0, seed=0).model)
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights(lost).items())


def test_a_tied_tensor_is_noised_once_and_stays_tied() -> None:
    model = tied_model()
    found = noise(model, 0.5, 1.0, seed=0).model
    assert ties(found) == TIE
    expected = shrink_and_perturb({"embed.W_E": weights(model)["embed.W_E"]}, 0.5, 1.0, seed=0)
    assert torch.equal(weights(found)["embed.W_E"], expected["embed.W_E"])


def test_the_seed_decides_the_draw() -> None:
    hashes = [content_hash(noise(tiny.model(), 0.5, 0.5, seed=seed).model) for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_more_noise_does_more_damage() -> None:
    distances = []
    for alpha in (0.0, 0.2, 0.5, 0.8):
        model = noise(tiny.knowing(), alpha, 0.1, seed=0).model
        moved = tiny.logits(model, tiny.tokens()) - tiny.logits(tiny.knowing(), tiny.tokens())
        distances.append(float(moved.norm()))
    assert distances == sorted(distances)
    assert distances[0] == 0


def test_a_wrong_alpha_is_refused() -> None:
    with pytest.raises(UndoProbeError, match=r"alpha is 1\.5"):
        noise(tiny.model(), 1.5, 0.1, seed=0)
