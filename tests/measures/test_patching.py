from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import tiny
import torch

from undo_probe.activations import harvest_points
from undo_probe.errors import UndoProbeError
from undo_probe.interventions import Swap, patch, swap
from undo_probe.measures import patching
from undo_probe.measures.patching import Place, Site, patch_map, patched_bits, places, plain_bits
from undo_probe.measures.stitches import answer_positions
from undo_probe.models import HookedTransformer, clone
from undo_probe.tasks import TokenSet


def rows(count: int = 10) -> TokenSet:
    return tiny.small_task().rows("forget_V").select(np.arange(count))


def other(model: HookedTransformer) -> HookedTransformer:
    """Other blocks between the same embedding and unembedding."""
    copy, fresh = clone(model), tiny.half_trained()
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if name.startswith("blocks."):
                parameter.copy_(fresh.get_parameter(name))
    return copy


@pytest.mark.parametrize("site", get_args(Site))
def test_a_models_own_activations_change_nothing(site: Site) -> None:
    model, asked = tiny.knowing(), rows()
    found = patched_bits(model, model, asked, places(model, site, [3, 6]))
    np.testing.assert_allclose(found, np.tile(plain_bits(model, asked), (len(found), 1)), atol=1e-5)
    assert tiny.hook_count(model) == 0


def test_all_that_b_writes_patched_into_a_gives_bs_logits() -> None:
    b = tiny.knowing()
    a, tokens = other(b), rows().tokens
    written = [f"blocks.{i}.hook_{site}" for i in range(2) for site in ("attn_out", "mlp_out")]
    with patch(a, harvest_points(b, tokens, written)):
        torch.testing.assert_close(tiny.logits(a, tokens), tiny.logits(b, tokens))
    with patch(a, harvest_points(b, tokens, written[:-1])):
        assert not torch.allclose(tiny.logits(a, tokens), tiny.logits(b, tokens), atol=1e-2)


def test_bs_last_residual_in_a_gives_bs_answers_where_they_share_the_decoder() -> None:
    b = tiny.knowing()
    a, asked = other(b), rows()
    at = places(a, "resid_post", answer_positions(asked), together=True)
    assert [place.layer for place in at] == [0, 1]
    first, last = patched_bits(a, b, asked, at)
    np.testing.assert_allclose(last, plain_bits(b, asked), atol=1e-5)
    assert np.abs(first - plain_bits(b, asked)).max() > 0.01


@pytest.mark.parametrize("site", get_args(Site))
def test_many_places_in_one_pass_are_what_each_gives_by_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, asked = tiny.knowing(), tiny.half_trained(), rows(7)
    at = places(a, site, [2, 5, 6])
    together = patched_bits(a, b, asked, at)
    alone = np.stack([patched_bits(a, b, asked, [place])[0] for place in at])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    monkeypatch.setattr(patching, "ROWS", 4)  # less than the rows: both loops go round
    np.testing.assert_allclose(patched_bits(a, b, asked, at), together, atol=1e-5)


def test_patching_all_heads_is_patching_what_attention_mixes() -> None:
    a, b, tokens = tiny.knowing(), tiny.half_trained(), rows().tokens
    hook = "blocks.0.attn.hook_z"
    z = harvest_points(b, tokens, [hook])[hook]
    with swap(a, [Swap(hook, z[:, :, head], head=head) for head in range(2)]):
        heads = tiny.logits(a, tokens)
    with patch(a, {hook: z}):
        torch.testing.assert_close(tiny.logits(a, tokens), heads)
    with swap(a, [Swap(hook, z[:, :, 0], head=0)]):
        assert not torch.allclose(tiny.logits(a, tokens), heads, atol=1e-3)


def test_what_is_done_to_the_activations_first_reaches_the_model() -> None:
    a, b, asked = tiny.knowing(), tiny.half_trained(), rows()
    place = [Place("mlp_out", 0, (6,))]
    erased = patched_bits(a, b, asked, place, {place[0].hook: torch.zeros_like})
    with patch(a, {place[0].hook: torch.zeros(len(asked), 1, 32)}, [6]):
        np.testing.assert_allclose(erased[0], plain_bits(a, asked), atol=1e-5)


def test_the_map_has_both_directions_and_places_no_answer_depends_on_do_nothing() -> None:
    a, b = tiny.knowing(), tiny.half_trained()
    asked = rows()
    last = max(answer_positions(asked)) + 1
    table: Any = patch_map(a, b, asked, positions=[6, last], draws=199)
    assert len(table) == 2 * 2 * 2
    assert set(table["into"]) == {"a", "b"}
    np.testing.assert_allclose(table.loc[table["position"] == last, "change"], 0, atol=1e-5)
    read: Any = table[(table["position"] == 6) & (table["into"] == "a")]
    assert (read["change"].abs() > 0.05).any()
    assert ((read["low"] <= read["change"]) & (read["change"] <= read["high"])).all()
    heads = patch_map(a, b, asked, "head", [6], draws=199)
    assert list(heads["head"].unique()) == [0, 1]


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (lambda m: places(m, "mlp_out", []), "no position to patch"),
        (
            lambda m: patched_bits(m, tiny.model(), rows(), places(m, "mlp_out", [1])),
            "two models of one shape",
        ),
        (lambda m: patched_bits(m, m, rows(), [Place("mlp_out", 0, (99,))]), "one at position 99"),
        (lambda m: patched_bits(m, m, rows(), []), "cannot patch 0 places"),
    ],
)
def test_a_wrong_request_is_refused(attempt: Callable, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        attempt(tiny.knowing())
