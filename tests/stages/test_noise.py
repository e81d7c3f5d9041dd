"""The noise stage: one draw on a copy, by parameter name."""

import pytest
import tiny
import torch
from test_models import TIE, tied_model

from undo_probe.config import NoiseRule
from undo_probe.errors import UndoProbeError
from undo_probe.models import content_hash, ties, weights
from undo_probe.perturb import shrink_and_perturb
from undo_probe.stages.noise import noise

FULL = NoiseRule(beta=1.0)


def test_the_original_is_untouched_and_the_copy_follows_the_rule() -> None:
    model = tiny.model()
    before = content_hash(model)
    found = noise(model, NoiseRule(), 0.6, seed=3).model
    assert content_hash(model) == before
    expected = shrink_and_perturb(weights(model), 0.6, 0.1, seed=3)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(found).items())


def test_alpha_zero_gives_the_same_model() -> None:
    assert content_hash(noise(tiny.model(), FULL, 0.0, seed=0).model) == content_hash(tiny.model())


def test_alpha_and_beta_one_forget_everything() -> None:
    lost = noise(tiny.knowing(), FULL, 1.0, seed=0).model
    assert tiny.accuracy(lost, "forget_T") < 0.3 < 0.9 < tiny.accuracy(tiny.knowing(), "forget_T")
    # whatever the model was, the same noise is left
    other = weights(noise(tiny.half_trained(), FULL, 1.0, seed=0).model)
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights(lost).items())


def test_a_tied_tensor_is_noised_once_and_stays_tied() -> None:
    model = tied_model()
    found = noise(model, FULL, 0.5, seed=0).model
    assert ties(found) == TIE
    expected = shrink_and_perturb({"embed.W_E": weights(model)["embed.W_E"]}, 0.5, 1.0, seed=0)
    assert torch.equal(weights(found)["embed.W_E"], expected["embed.W_E"])


def test_the_seed_decides_the_draw() -> None:
    hashes = [
        content_hash(noise(tiny.model(), NoiseRule(beta=0.5), 0.5, seed=seed).model) for seed in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_more_noise_does_more_damage() -> None:
    distances = []
    for alpha in (0.0, 0.2, 0.5, 0.8):
        model = noise(tiny.knowing(), NoiseRule(), alpha, seed=0).model
        moved = tiny.logits(model, tiny.tokens()) - tiny.logits(tiny.knowing(), tiny.tokens())
        distances.append(float(moved.norm()))
    assert distances == sorted(distances)
    assert distances[0] == 0


def test_a_wrong_alpha_is_refused() -> None:
    with pytest.raises(UndoProbeError, match=r"alpha is 1\.5"):
        noise(tiny.model(), NoiseRule(), 1.5, seed=0)


def test_a_reset_block_is_drawn_as_the_model_was_and_the_rest_stays() -> None:
    model = tiny.knowing()
    rule = NoiseRule(draw="init", beta=1.0, layers=(1,))
    reset, before = weights(noise(model, rule, 1.0, seed=0).model), weights(model)
    for name, tensor in reset.items():
        if not name.startswith("blocks.1."):
            assert torch.equal(tensor, before[name])
        elif ".W_" in name:
            assert float(tensor.std()) == pytest.approx(model.cfg.initializer_range, rel=0.1)
        else:
            assert torch.equal(
                tensor, torch.full_like(tensor, float(name.endswith("ln1.w") or name.endswith("ln2.w")))
            )


def test_only_what_unlearning_moved_is_noised() -> None:
    model, before = tiny.suppressed().model, tiny.knowing()
    damaged = weights(noise(model, NoiseRule(beta=0.0, top_delta=0.1), 1.0, seed=0, before=before).model)
    own, old = weights(model), weights(before)
    moved = torch.cat([(own[name] - old[name]).abs().flatten() for name in own])
    changed = torch.cat([(damaged[name] != own[name]).flatten() for name in own])
    assert int(changed.sum()) == pytest.approx(0.1 * len(moved), rel=0.01)  # an entry of 0 shrinks to itself
    assert float(moved[changed].min()) >= float(moved[~changed].max())


def test_what_a_rule_needs_and_lacks_is_said() -> None:
    with pytest.raises(UndoProbeError, match="top_delta needs the model before unlearning"):
        noise(tiny.model(), NoiseRule(top_delta=0.1), 0.5, seed=0)
    with pytest.raises(UndoProbeError, match=r"layers has 7, but the model has layers 0\.\.1"):
        noise(tiny.model(), NoiseRule(layers=(7,)), 0.5, seed=0)
    with pytest.raises(
        UndoProbeError, match=r"heads has '0\.9' \(layer\.head\), but the model has 2 layers of"
    ):
        noise(tiny.model(), NoiseRule(heads=("0.9",)), 0.5, seed=0)
    odd = tiny.model()
    odd.cfg.init_mode = "xavier_normal"
    with pytest.raises(UndoProbeError, match="draw is 'init'"):
        noise(odd, NoiseRule(draw="init"), 0.5, seed=0)
