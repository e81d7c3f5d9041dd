import pytest
import tiny
import torch

from undo_probe.activations import harvest_points, residual_names, residual_streams
from undo_probe.errors import UndoProbeError


def test_harvested_states_are_those_of_the_cache_in_any_batch_size() -> None:
    model, tokens = tiny.model(), tiny.tokens(7)
    _, cache = model.run_with_cache(tokens)
    streams = residual_streams(model, tokens, batch_size=3)
    assert list(streams) == residual_names(model)
    for name, states in streams.items():
        torch.testing.assert_close(states, cache[name].detach())
        assert not states.requires_grad


def test_positions_are_kept_in_the_order_asked_for() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    name = "blocks.1.hook_resid_post"
    everything = residual_streams(model, tokens)[name]
    assert torch.equal(residual_streams(model, tokens, [4, 1])[name], everything[:, [4, 1]])
    assert torch.equal(residual_streams(model, tokens, -1)[name], everything[:, -1:])


def test_points_of_any_shape_come_back_and_no_hook_stays() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = tiny.logits(model, tokens)
    found = harvest_points(model, tokens, ["blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"], [6])
    assert found["blocks.0.attn.hook_z"].shape == (6, 1, 2, 8)
    assert found["blocks.1.mlp.hook_post"].shape == (6, 1, 32)
    assert tiny.hook_count(model) == 0
    assert torch.equal(tiny.logits(model, tokens), before)


def test_what_is_not_there_is_refused_by_name() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    with pytest.raises(UndoProbeError, match="no hook point 'resid_post'"):
        harvest_points(model, tokens, ["resid_post"])
    with pytest.raises(UndoProbeError, match="do not fit rows of 11 tokens"):
        residual_streams(model, tokens, 11)
    with pytest.raises(UndoProbeError, match="behind the last block"):
        harvest_points(model, tokens, ["ln_final.hook_normalized"])
    with pytest.raises(UndoProbeError, match="nothing to harvest"):
        residual_streams(model, tokens[:0])


def test_each_row_may_be_read_at_places_of_its_own() -> None:
    model, tokens = tiny.model(), tiny.tokens(5)
    places = torch.tensor([[1, 3], [0, 2], [4, 4], [2, 1], [3, 0]])
    whole = residual_streams(model, tokens)
    own = residual_streams(model, tokens, places, batch_size=2)
    last = residual_streams(model, tokens, places[:, 1], batch_size=2)
    for name, states in whole.items():
        wanted = torch.stack([states[row, places[row]] for row in range(5)])
        torch.testing.assert_close(own[name], wanted)
        torch.testing.assert_close(last[name], wanted[:, 1:])
    with pytest.raises(UndoProbeError, match="positions from 0 to 99 do not fit rows of"):
        residual_streams(model, tokens, torch.tensor([0, 1, 2, 3, 99]))
