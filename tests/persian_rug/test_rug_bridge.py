"""Regimes: codes made to be one thing, their nulls, and a dictionary that finds the atoms it was made from."""

import pytest
import tiny
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import bridge
from undo_probe.persian_rug.engineered import features, frame
from undo_probe.persian_rug.limits import features_held
from undo_probe.randomness import generator


def rug(n: int, d: int) -> torch.Tensor:
    return frame(n, d).down(torch.eye(n))


def pairs(d: int) -> torch.Tensor:
    return torch.cat([torch.eye(d), -torch.eye(d)])


def test_a_rug_stands_on_the_welch_floor_and_random_atoms_above_it() -> None:
    found = bridge.regime(5.0 * rug(64, 16))
    assert found.own.phase == "rug" and found.own.excess == pytest.approx(1)
    assert found.own.dimensions == pytest.approx(16) and found.own.spread == pytest.approx(0, abs=1e-6)
    assert torch.allclose(found.dimensionality, torch.full((64,), 0.25).double())
    random, tight = found.geometries[1:]
    assert tight.excess == pytest.approx(1) and tight.phase == "rug"
    # s of random unit atoms is (n - 1) / d, the floor n/d - 1
    assert random.noise == pytest.approx(63 / 16, rel=0.1) and random.excess > 1.15


def test_pairs_are_called_so_and_atoms_of_few_dimensions_show_it() -> None:
    assert bridge.regime(pairs(8)).own.phase == "digon"
    flat = torch.randn(64, 16, generator=generator(0)) * torch.tensor([1.0] * 4 + [0.01] * 12)
    own = bridge.regime(flat).own
    assert own.dimensions == pytest.approx(4, abs=0.5) and own.excess > 4


def test_interference_is_measured_with_codes_and_correlation_between_them_shows() -> None:
    x = features(4000, 64, 0.1, generator(1))
    found = bridge.regime(rug(64, 16), x)
    assert found.rate == pytest.approx(0.1, abs=0.01)
    assert found.held == pytest.approx(float(features_held(16, found.rate)))
    own, shuffled = found.own, found.geometries[-1]
    assert shuffled.name == bridge.SHUFFLED and own.kurtosis is not None
    assert own.kurtosis == pytest.approx(shuffled.kurtosis, abs=0.3)
    bursts = x * (torch.rand(4000, 1, generator=generator(2)) < 0.2)  # all at once, or none
    together = bridge.regime(rug(64, 16), bursts)
    assert together.own.kurtosis > 2 + together.geometries[-1].kurtosis  # pyright: ignore
    assert len(found.table()) == 4 and set(found.table()["phase"]) <= {"rug", "mixed"}


@pytest.mark.slow
def test_a_dictionary_finds_the_atoms_that_made_the_states() -> None:
    atoms = rug(24, 16)
    x = features(600, 24, 0.08, generator(3))
    found = bridge.learn_dictionary(x @ atoms + 7.0, 24, passes=8)
    unit = torch.nn.functional.normalize(found.atoms, dim=1)
    cosine = (unit @ torch.nn.functional.normalize(atoms.double(), dim=1).T).amax(0)
    assert float(cosine.median()) > 0.95 and found.dead == 0 and found.rows == 300
    assert 0.7 < found.explained < 1 and bool((found.codes >= 0).all())
    excess = bridge.regime(found.atoms, found.codes).own.excess
    assert excess < bridge.regime(found.atoms).geometries[1].excess


def test_a_stream_of_a_taught_model_has_a_regime() -> None:
    model, rows = tiny.model(), tiny.tokens(60)
    found, made = bridge.stream_regime(
        model, rows, "blocks.1.hook_resid_post", over=1.5, most=200, passes=2, penalty=0.05
    )
    assert found.width == 16 and found.atoms == 24 - made.dead and len(made.codes) == 100
    assert found.own.dimensions <= 16 and found.own.excess >= 1 - 1e-9
    assert [each.name for each in found.geometries] == [
        bridge.GIVEN,
        bridge.RANDOM,
        bridge.TIGHT,
        bridge.SHUFFLED,
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: bridge.regime(torch.eye(4)),
            "4 atoms in 4 dimensions, 0 of them without length: expected more",
        ),
        (lambda: bridge.regime(torch.eye(8)[:, :4]), "8 atoms in 4 dimensions, 4 of them without length"),
        (lambda: bridge.regime(pairs(4), torch.ones(3, 5)), "codes for 5 atoms, but there are 8"),
        (lambda: bridge.learn_dictionary(torch.ones(9, 3), 5), "9 states for 5 atoms: .*at least 10"),
        (
            lambda: bridge.stream_regime(tiny.model(), tiny.tokens(), "resid_post"),
            "'resid_post' means 2 hook points: name one",
        ),
    ],
)
def test_what_has_no_regime_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
