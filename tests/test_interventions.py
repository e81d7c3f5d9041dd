from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import tiny
import torch

from undo_probe.activations import residual_streams
from undo_probe.errors import UndoProbeError
from undo_probe.interventions import ablate, intervene, patch, steer
from undo_probe.models import HookedTransformer
from undo_probe.subspace import Subspace

POST = "blocks.0.hook_resid_post"
EDITS: dict[str, Callable[[HookedTransformer], AbstractContextManager]] = {
    "ablate": lambda model: ablate(model, Subspace.random(16, 2, 0)),
    "steer": lambda model: steer(model, torch.arange(16.0), POST),
    "patch": lambda model: patch(model, {POST: torch.zeros(6, 1, 16)}, positions=[2]),
}


@pytest.mark.parametrize("name", EDITS)
def test_logits_change_inside_and_are_bit_equal_afterwards(name: str) -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = tiny.logits(model, tokens)
    with EDITS[name](model):
        assert not torch.allclose(tiny.logits(model, tokens), before, atol=1e-4)
        assert tiny.hook_count(model) > 0
    assert torch.equal(tiny.logits(model, tokens), before)
    assert tiny.hook_count(model) == 0


@pytest.mark.parametrize("name", EDITS)
def test_nothing_stays_when_the_body_raises(name: str) -> None:
    model = tiny.model()
    with pytest.raises(RuntimeError, match="in the body"), EDITS[name](model):
        raise RuntimeError("in the body")
    assert tiny.hook_count(model) == 0


def test_nested_blocks_undo_one_another_in_turn() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    first, second = Subspace.random(16, 1, 0), Subspace.random(16, 1, 1)
    with ablate(model, first):
        alone = tiny.logits(model, tokens)
        with ablate(model, second):
            both = tiny.logits(model, tokens)
        assert torch.equal(tiny.logits(model, tokens), alone)
    assert not torch.allclose(alone, both, atol=1e-4)


def test_another_hook_on_the_model_stays() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    seen = []
    handle = model.hook_dict[POST].register_forward_hook(lambda *_: seen.append(1))
    with ablate(model, Subspace.random(16, 1, 0)):
        tiny.logits(model, tokens)
    tiny.logits(model, tokens)
    handle.remove()
    assert len(seen) == 2


def test_no_residual_state_keeps_the_ablated_component() -> None:
    model, tokens, space = tiny.model(), tiny.tokens(), Subspace.random(16, 2, 0)
    with ablate(model, space):
        streams = residual_streams(model, tokens)
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"):
        assert space.share(streams[name]).max() < 1e-9
        assert space.share(residual_streams(model, tokens)[name]).max() > 1e-3


def test_ablation_to_the_mean_leaves_the_means_component() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    mean = torch.linspace(-1, 1, 16)
    space = Subspace.from_vectors(torch.ones(16) + mean, mean=mean)
    with ablate(model, space, value="mean"):
        last = residual_streams(model, tokens)["blocks.1.hook_resid_post"]
    torch.testing.assert_close(last @ space.direction, (mean @ space.direction).expand(last.shape[:2]))


def test_blocks_before_the_first_ablated_one_are_untouched() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = residual_streams(model, tokens)
    with ablate(model, Subspace.random(16, 1, 0), layers=[1]):
        inside = residual_streams(model, tokens)
    assert torch.equal(inside["blocks.0.hook_resid_post"], before["blocks.0.hook_resid_post"])
    assert not torch.allclose(inside["blocks.1.hook_resid_post"], before["blocks.1.hook_resid_post"])


def test_patching_a_models_own_states_changes_nothing() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = tiny.logits(model, tokens)
    states = residual_streams(model, tokens)[POST]
    with patch(model, {POST: states}):
        assert torch.equal(tiny.logits(model, tokens), before)
    with patch(model, {POST: states.flip(0)}):
        torch.testing.assert_close(tiny.logits(model, tokens), before.flip(0))


def test_a_norm_that_centres_cannot_see_the_all_ones_direction() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = tiny.logits(model, tokens)
    with steer(model, torch.ones(16), POST, scale=3.0):
        torch.testing.assert_close(tiny.logits(model, tokens), before, atol=1e-4, rtol=1e-4)


def test_steering_adds_the_vector_at_its_point() -> None:
    model, tokens, vector = tiny.model(), tiny.tokens(), torch.arange(16.0)
    before = residual_streams(model, tokens)[POST]
    with steer(model, vector, POST, scale=-2.0):
        torch.testing.assert_close(residual_streams(model, tokens)[POST], before - 2 * vector)


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (lambda m: ablate(m, Subspace.random(8, 1, 0)), "width 8 does not fit a model of width 16"),
        (lambda m: ablate(m, Subspace.random(16, 1, 0), layers=[2]), "layers go from 0 to 1"),
        (lambda m: ablate(m, Subspace.random(16, 1, 0), value="mean"), "needs a subspace with a mean"),
        (lambda m: steer(m, torch.ones(16), "blocks.9.hook_mlp_out"), "no hook point"),
        (lambda m: intervene(m, {"nowhere": lambda h: h}), "no hook point 'nowhere'"),
    ],
)
def test_a_wrong_request_is_refused_and_leaves_no_hook(attempt: Callable, text: str) -> None:
    model = tiny.model()
    with pytest.raises(UndoProbeError, match=text), attempt(model):
        pass
    assert tiny.hook_count(model) == 0


def test_patching_rows_that_are_not_run_says_so() -> None:
    model = tiny.model()
    with pytest.raises(UndoProbeError, match="patch exactly the rows"), EDITS["patch"](model):
        tiny.logits(model, tiny.tokens(5))
    assert tiny.hook_count(model) == 0
