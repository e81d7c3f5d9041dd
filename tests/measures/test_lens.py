import numpy as np
import tiny
import torch
from basis import reordered

from undo_probe.activations import harvest_points, residual_names
from undo_probe.measures import ItemScores
from undo_probe.measures.lens import decode, lens_measures, transfer_measures
from undo_probe.measures.patching import plain_bits
from undo_probe.measures.stitches import asked_rows, fit_stitches
from undo_probe.models import HookedTransformer, build

LAST = "blocks.1.hook_resid_post"


def lens(model: HookedTransformer) -> dict[tuple[str, str, str, str | None], ItemScores]:
    task, original = tiny.small_task(), tiny.knowing()
    maps = fit_stitches(model, original, task).maps
    return {
        (f.measure, f.task_split, f.subset, f.layer): f for f in lens_measures(model, original, task, maps)
    }


def test_at_the_last_layer_the_own_lens_is_the_models_answer() -> None:
    for model in (tiny.knowing(), tiny.half_trained()):
        found = lens(model)
        for split in ("forget", "retain"):
            rows = asked_rows(tiny.small_task(), split)
            values = found["lens_log_probability", split, "own", LAST].values
            np.testing.assert_allclose(values, plain_bits(model, rows), atol=1e-5)


def test_the_last_residual_is_before_the_final_norm() -> None:
    """Off by a norm: what libraries call the last hidden state has been through it already."""
    model, tokens = tiny.knowing(), tiny.small_task().rows("forget_V").tokens
    name = residual_names(model)[-1]
    before = harvest_points(model, tokens, [name])[name]
    torch.testing.assert_close(decode(model, before), tiny.logits(model, tokens))
    with torch.no_grad():
        after = model.ln_final(before)
    assert not torch.allclose(decode(model, after), tiny.logits(model, tokens), atol=1e-2)


def test_a_model_does_not_differ_from_itself() -> None:
    found = lens(tiny.knowing())
    for (measure, _, subset, layer), item in found.items():
        if measure == "lens_kl" and not subset.startswith("mapped"):
            assert item.values.max() < 1e-9
        if measure == "lens_kl" and layer != LAST and subset.startswith("mapped"):
            assert item.values.max() < 0.05
    assert any(measure == "lens_kl" for measure, *_ in found)


def test_another_basis_is_read_by_its_own_decoder_and_through_the_map() -> None:
    found = lens(reordered(tiny.knowing()))
    means = {subset: float(found["lens_log_probability", "forget", subset, LAST].values.mean()) for subset in
             ("own", "original's", "mapped")}  # fmt: skip
    assert means["original's"] < means["own"] - 2
    assert abs(means["mapped"] - means["own"]) < 0.1
    assert float(found["lens_kl", "forget", "own", LAST].values.max()) < 1e-6


def test_ranks_count_likelier_tokens_and_fit_the_accuracy() -> None:
    model = build(tiny.SHAPE, tiny.small_task().d_vocab, tiny.small_task().n_ctx, seed=5)
    found = lens(model)
    rows = asked_rows(tiny.small_task(), "forget")
    with torch.no_grad():
        logits = model(rows.tokens, return_type="logits")[:, rows.read_position]
    target = rows.tokens[:, rows.read_position + 1]
    expected = (logits.argsort(-1, descending=True) == target[:, None]).float().argmax(-1) + 1
    first = found["lens_rank", "forget", "own, first token", LAST].values
    np.testing.assert_array_equal(first, expected.numpy())
    assert 1 < first.mean() < tiny.small_task().d_vocab


def test_a_transferred_probe_reads_another_basis_only_through_the_map() -> None:
    task, original = tiny.small_task(), tiny.knowing()
    same = reordered(original)

    def read(model: HookedTransformer) -> dict[str, np.ndarray]:
        maps = fit_stitches(model, original, task).maps
        found = transfer_measures(model, original, task, maps)
        return {f.subset: f.values for f in found if f.layer == LAST and f.subset.startswith("first_digit")}

    own, moved = read(original), read(same)
    np.testing.assert_array_equal(own["first_digit"], own["first_digit, mapped"])
    assert own["first_digit"].mean() > moved["first_digit"].mean() + 0.2
    np.testing.assert_allclose(moved["first_digit, mapped"].mean(), own["first_digit"].mean(), atol=0.1)
