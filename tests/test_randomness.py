"""A draw depends on what it is for, and on nothing else."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undo_probe.randomness import derive_seed, deterministic, generator

part = st.integers() | st.text() | st.floats(allow_nan=False) | st.booleans() | st.none()


@given(st.lists(part, max_size=4))
def test_the_same_parts_give_the_same_63_bit_seed(parts: list) -> None:
    assert derive_seed(*parts) == derive_seed(*parts)
    assert 0 <= derive_seed(*parts) < 2**63


def test_seeds_differ_by_purpose_by_type_and_by_order() -> None:
    parts = [(0,), (1,), ("1",), (1.0,), (True,), (None,), (), ("",), (0, 1), (1, 0), ("ab",), ("a", "b")]
    parts += [("astr:b",), ("a,b",), ("a b",)]  # no text can pass for two parts
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def test_a_whole_sweep_of_seeds_and_purposes_has_no_collision() -> None:
    purposes = itertools.product(range(20), ("noise", "batch", "weights"), (0.2, 0.4, 0.6), range(20))
    seeds = [derive_seed(*purpose) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)


def test_seeds_use_all_their_bits() -> None:
    seeds = [derive_seed(n) for n in range(2000)]
    for bit in range(63):
        assert 0.4 < sum(seed >> bit & 1 for seed in seeds) / len(seeds) < 0.6


def test_generators_of_two_purposes_share_no_stream_and_move_no_global_state() -> None:
    before = torch.random.get_rng_state()
    draws = [torch.rand(50, generator=generator(0, purpose)) for purpose in ("noise", "noise", "batch")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert abs(float(torch.corrcoef(torch.stack([draws[0], draws[2]]))[0, 1])) < 0.4
    assert torch.equal(torch.random.get_rng_state(), before)


def _torch_settings() -> tuple[bool, bool, int, bool]:
    memory: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
        memory.fill_uninitialized_memory,
    )


@pytest.mark.parametrize(("before", "warn_only"), [(False, False), (True, True)])
@pytest.mark.parametrize("fails", [False, True])
def test_determinism_and_threads_are_set_inside_and_restored_after(
    before: bool, warn_only: bool, fails: bool
) -> None:
    start = _torch_settings()
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
    outside = _torch_settings()
    try:
        with deterministic(threads=2):
            assert _torch_settings() == (True, False, 2, False)
            if fails:
                raise KeyError
    except KeyError:
        pass
    found = _torch_settings()
    torch.use_deterministic_algorithms(start[0], warn_only=start[1])
    assert found == outside


def test_without_a_thread_count_the_present_one_stays() -> None:
    before = torch.get_num_threads()
    with deterministic(threads=None):
        assert torch.get_num_threads() == before
