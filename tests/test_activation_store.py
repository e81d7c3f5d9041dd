import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from undo_probe.activation_store import ActivationStore
from undo_probe.activations import residual_names
from undo_probe.errors import UndoProbeError
from undo_probe.harvesting import harvest

POST = residual_names(tiny.model())[1:]
TOKENS = torch.randint(tiny.task().d_vocab, (20, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """20 rows of 7 positions in shards of 3 rows."""
    folder = tmp_path_factory.mktemp("store") / "s"
    store = harvest(tiny.model(), TOKENS, "resid_post", folder, shard_mb=0.003, batch_size=3, quiet=True)
    assert store.layout.shards == 7
    return store


@pytest.fixture
def copy(made: ActivationStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


def test_slices_rows_and_positions_are_those_of_the_whole(made: ActivationStore) -> None:
    whole = made.read(POST[1]).unflatten(0, (20, 7))
    assert len(made) == 140
    for rows in (slice(4, 5), slice(2, 17), slice(None, None, -3), [5, 5, 0], range(3, 9), -1):
        picked = whole[np.arange(20)[rows].tolist()]
        assert torch.equal(made.read(1, rows), picked.reshape(-1, 16))
        assert torch.equal(made.read(POST[1], rows, position=-2), picked.reshape(-1, 7, 16)[:, 5])
    assert torch.equal(torch.cat(list(made.parts(1))), made.read(1))
    assert (made.rows == np.repeat(np.arange(20), 7)).all()
    assert (made.positions == np.tile(np.arange(7), 20)).all()
    assert torch.equal(made.tokens, TOKENS)


def test_a_slice_of_a_shard_is_a_view_of_the_file_and_not_a_copy(made: ActivationStore) -> None:
    some = made.read(0, slice(0, 2))
    assert some.untyped_storage().nbytes() > some.nbytes


def test_shards_are_plain_safetensors(made: ActivationStore) -> None:
    shard = load_file(made.folder / "shard-00001.safetensors")
    assert torch.equal(shard[POST[0]], made.read(0, slice(3, 6)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("blocks.9.hook_resid_post",), "holds nothing at 'blocks.9.hook_resid_post'; it has: blocks.0"),
        ((7,), "holds nothing at 7; it has"),
        ((0, [3, 20]), r"rows \[3, 20\] do not fit a store of 20 rows \(0 to 19\)"),
        ((0, None, 7), r"kept nothing at position 7 .* it kept the positions \[0, 1, 2, 3, 4, 5, 6\]"),
        ((0, slice(30, 40)), "kept nothing at position None of the rows asked for"),
    ],
)
def test_what_is_not_there_is_refused(made: ActivationStore, words: tuple, said: str) -> None:
    with pytest.raises(UndoProbeError, match=said):
        made.read(*words)


def test_a_number_that_fits_two_points_is_refused(tmp_path: Path) -> None:
    both = harvest(tiny.model(), TOKENS, ["resid_post", "mlp_out"], tmp_path, quiet=True)
    with pytest.raises(UndoProbeError, match="holds several points of 1; it has"):
        both.read(1)


def test_one_flipped_bit_anywhere_in_a_shard_is_found_and_the_shard_named(copy: Path) -> None:
    path = copy / "shard-00004.safetensors"
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    header = 8 + int.from_bytes(good[:8], "little")
    places = {0, 8, header - 1, header, len(good) - 1, *draw.integers(0, len(good), 60).tolist()}
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(bad)
        with pytest.raises(UndoProbeError, match=r"shard-00004\.safetensors (is damaged|cannot be read)"):
            ActivationStore(copy).verify()
    path.write_bytes(good)
    ActivationStore(copy).verify()


def test_reading_touches_and_checks_only_what_is_asked_for(copy: Path, made: ActivationStore) -> None:
    path = copy / "shard-00004.safetensors"
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1  # the last point of rows 12 to 14
    path.write_bytes(bad)
    store = ActivationStore(copy)
    assert torch.equal(store.read(1, slice(0, 12)), made.read(1, slice(0, 12)))
    assert torch.equal(store.read(0), made.read(0))
    with pytest.raises(UndoProbeError, match=r"shard-00004.* is damaged: blocks.1.hook_resid_post .* Delete"):
        store.read(1, [13])
    trusting = ActivationStore(copy, check=False)
    assert not torch.equal(trusting.read(1), made.read(1))
    with pytest.raises(UndoProbeError, match="is damaged"):
        trusting.verify()


def test_a_deleted_shard_is_made_anew_and_only_that(copy: Path) -> None:
    path = copy / "shard-00002.safetensors"
    good = path.read_bytes()
    others = {p: p.stat().st_mtime_ns for p in copy.glob("shard-*.safetensors") if p != path}
    path.unlink()
    with pytest.raises(UndoProbeError, match="1 of 7 shards are missing .* first shard-00002.safetensors"):
        ActivationStore(copy)
    harvest(tiny.model(), TOKENS, "resid_post", copy, quiet=True).verify()
    assert path.read_bytes() == good
    assert {p: p.stat().st_mtime_ns for p in others} == others


@pytest.mark.parametrize("name", ["store.json", "tokens.safetensors", "shard-00003.json"])
def test_damaged_records_and_tokens_are_found(copy: Path, name: str) -> None:
    path = copy / name
    bad = bytearray(path.read_bytes())
    place = bad.index(b"key") + 8 if name != "tokens.safetensors" else len(bad) - 1
    bad[place] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UndoProbeError, match=name.split(".")[0]):
        ActivationStore(copy).verify()


def test_a_shard_of_another_harvest_does_not_pass(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    harvest(tiny.model(seed=1), TOKENS, "resid_post", other, shard_mb=0.003, batch_size=3, quiet=True)
    for path in other.glob("shard-00001.*"):
        shutil.copy(path, copy)
    with pytest.raises(UndoProbeError, match="1 of 7 shards are missing or have a damaged record"):
        ActivationStore(copy)


def test_two_models_over_the_same_tokens_are_read_side_by_side(made: ActivationStore, tmp_path: Path) -> None:
    # cut otherwise: 20 rows in one shard
    other = harvest(tiny.model(seed=1), TOKENS, "resid_post", tmp_path, quiet=True)
    pairs = list(made.paired(other, 1))
    assert len(pairs) == 7
    assert torch.equal(torch.cat([a for a, _ in pairs]), made.read(1))
    assert torch.equal(torch.cat([b for _, b in pairs]), other.read(1))


def test_stores_over_different_tokens_refuse_to_be_compared_and_say_why(
    made: ActivationStore, tmp_path: Path
) -> None:
    changed = TOKENS.clone()
    changed[3, 2] = 5 if int(TOKENS[3, 2]) != 5 else 6
    shuffled = (
        f"1 of 20 rows hold different tokens; row 3 has {int(TOKENS[3, 2])} at position 2 in the first and "
        f"{int(changed[3, 2])} in the second. Harvest both models on the same tokens"
    )
    others = {
        shuffled: {"tokens": changed},
        "they hold different tokens: 20 rows of 7 tokens against 19 rows of 7 tokens": {
            "tokens": TOKENS[:19]
        },
        r"of row 0 \[0, 1, 2, 3, 4, 5, 6\] in the first and \[2, 4\] in the second": {"positions": [4, 2]},
    }
    for i, (said, words) in enumerate(others.items()):
        settings = {"tokens": TOKENS, **words}
        other = harvest(tiny.model(), points="resid_post", folder=tmp_path / str(i), quiet=True, **settings)
        with pytest.raises(UndoProbeError, match=f"cannot be compared: .*{said}"):
            next(made.paired(other, 1))


def test_what_a_notebook_shows_is_escaped_and_says_what_is_there(tmp_path: Path) -> None:
    store = harvest(
        tiny.model(), TOKENS, "resid_post", tmp_path, variant="<script>alert(1)</script>", quiet=True
    )
    page = store._repr_html_()
    assert "<script>" not in page
    assert "140 of 20 rows" in page
    assert "2 from blocks.0.hook_resid_post to blocks.1.hook_resid_post" in page
    assert repr(store).startswith(f"ActivationStore('{tmp_path}': 2 from blocks.0")


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"holds no activations \(there is no store.json\)"):
        ActivationStore(tmp_path)
