"""The attacks beside relearning: each does what its name says, alike for every arm, to a copy."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from undo_probe.attacks import relearn as relearn_model
from undo_probe.attacks.arms import Target, attack_identity
from undo_probe.attacks.one_model import attack_once
from undo_probe.attacks.recipes import ATTACKS, Recipe, dose_rows, recipes
from undo_probe.config import AttackConfig, RecoveryConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answers_correct
from undo_probe.models import HookedTransformer, as_matrix, block_matrices, content_hash
from undo_probe.presets import preset
from undo_probe.records import Arm
from undo_probe.store import Store
from undo_probe.training import Context

TASK = tiny.small_task()
RECOVERY = RecoveryConfig(doses=(1, 3), ranks=(1, 4), dimensions=(8,), bits=(8, 2), shares=(0.25,))
CONFIG = AttackConfig(
    learning_rates=(3e-3,),
    steps=12,
    batch_size=32,
    eval_steps=(0, 4, 12),
    also=("mixed", "retain_only", "noised", "dose", "lora", "subspace", "block", "quantised", "pruned"),
    recovery=RECOVERY,
)
PLANNED = recipes(CONFIG, n_layers=2)
every_attack = pytest.mark.parametrize("recipe", PLANNED.values(), ids=PLANNED)
TRAINED = {name: recipe for name, recipe in PLANNED.items() if recipe.trained}


def changed(before: HookedTransformer, after: HookedTransformer) -> set[str]:
    now = dict(after.named_parameters())
    return {name for name, p in before.named_parameters() if not torch.equal(p, now[name])}


def after(name: str, steps: int = 12, model: HookedTransformer | None = None) -> HookedTransformer:
    config = CONFIG.model_copy(update={"steps": steps, "eval_steps": (0, steps)})
    return attack_once(model or tiny.half_trained(), TASK, config, 3e-3, Context(seed=1), PLANNED[name])[
        0
    ].model


def test_the_configuration_names_every_attack_and_gives_one_recipe_a_number() -> None:
    assert set(ATTACKS) == {"relearn", "few_shot", *CONFIG.also}  # the last: test_few_shot.py
    assert list(PLANNED) == [
        "relearn", "mixed", "retain_only", "noised", "dose-1", "dose-3", "lora-1", "lora-4", "subspace-8",
        "block-0", "block-1", "quantised-8", "quantised-2", "pruned-0.25",
    ]  # fmt: skip
    assert list(recipes(AttackConfig(), 2)) == ["relearn"]


@every_attack
def test_an_attack_leaves_the_model_and_starts_from_what_it_does(recipe: Recipe) -> None:
    model = tiny.half_trained()
    before = content_hash(model)
    done, correct = attack_once(model, TASK, CONFIG, 3e-3, Context(seed=1), recipe)
    assert content_hash(model) == before
    assert content_hash(done.model) != before
    assert tiny.hook_count(done.model) == 0
    assert not any("parametrizations" in name for name, _ in done.model.named_modules())
    for side, split in (("forget", "forget_V"), ("retain", "retain_test")):
        assert len(correct[side]) == len(recipe.steps(CONFIG))
        assert np.array_equal(correct[side][0], answers_correct(model, TASK.rows(split)))
        assert np.array_equal(correct[side][-1], answers_correct(done.model, TASK.rows(split)))


@every_attack
def test_the_same_attack_twice_gives_the_same_bits(recipe: Recipe) -> None:
    found = [
        attack_once(tiny.half_trained(), TASK, CONFIG, 3e-3, Context(seed=1), recipe)[0].model
        for _ in range(2)
    ]
    assert content_hash(found[0]) == content_hash(found[1])


@pytest.mark.parametrize("recipe", TRAINED.values(), ids=TRAINED)
def test_batches_depend_on_the_seed_and_never_hold_what_is_evaluated(recipe: Recipe) -> None:
    """They are drawn from task and seed, so every attacked model meets the same."""
    rows = [recipe.draw(TASK, seed)(16, 3).tokens for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    shown = {TASK.decode(row) for step in range(50) for row in recipe.draw(TASK, 0)(64, step).tokens}
    for split in ("forget_V", "forget_W", "forget_D", "retain_test", "retain_dev"):
        assert not shown & {TASK.decode(row) for row in TASK.rows(split).tokens}


def test_mixed_and_retain_only_show_what_they_say_and_count_their_labels() -> None:
    model = tiny.half_trained()
    for name, operations, labelled in (
        ("mixed", "+-*/", 0.5),
        ("retain_only", "+-", 0.0),
        ("relearn", "*/", 1.0),
    ):
        batches = PLANNED[name].draw(TASK, 0)
        shown = {TASK.decode(row)[3] for step in range(20) for row in batches(64, step).tokens}
        assert shown == set(operations)
        ledger = attack_once(model, TASK, CONFIG, 3e-3, Context(seed=1), PLANNED[name])[0].ledger
        assert ledger.labelled_tokens == labelled * ledger.tokens


def test_relearning_with_retain_rows_keeps_what_relearning_alone_destroys() -> None:
    model = tiny.suppressed().model
    kept = {name: tiny.accuracy(after(name, 60, model), "retain_train") for name in ("mixed", "relearn")}
    assert kept["mixed"] > kept["relearn"] + 0.2
    assert tiny.accuracy(after("mixed", 60, model), "forget_T") > 0.9


def test_few_numbers_are_enough_where_they_reach_and_fewer_are_not() -> None:
    """A LoRA of rank 4 and one block bring all of T back; eight numbers do not, at the same rate and steps."""
    model = tiny.suppressed().model
    for name in ("lora-4", "block-0"):
        assert tiny.accuracy(after(name, 60, model), "forget_T") > 0.9, name
    assert tiny.accuracy(after("subspace-8", 60, model), "forget_T") < 0.5


def families(count: int, seed: int = 0) -> set[str]:
    return set(dose_rows(TASK, count, seed).families)


def test_a_dose_is_exactly_so_many_families_and_holds_every_smaller_one() -> None:
    whole = len(set(TASK.rows("forget_T").families))
    doses = [families(count) for count in range(1, whole + 1)]
    assert [len(dose) for dose in doses] == list(range(1, whole + 1))
    for smaller, larger in zip(doses, doses[1:], strict=False):
        assert smaller < larger
    assert len({tuple(families(2, seed)) for seed in range(20)}) > 3
    assert len(dose_rows(TASK, whole, 0)) == len(TASK.rows("forget_T"))


def test_a_dose_trains_on_all_rows_of_its_families_and_on_no_other() -> None:
    for count in (1, 3):
        rows = dose_rows(TASK, count, seed=7)
        batches = PLANNED[f"dose-{count}"].draw(TASK, 7)
        shown = {TASK.decode(row) for step in range(60) for row in batches(32, step).tokens}
        assert shown == {TASK.decode(row) for row in rows.tokens}


def test_a_dose_stands_in_line_where_the_task_has_room_for_shots() -> None:
    packed = type(TASK)(TASK.config.model_copy(update={"shots": 2}), seed=0)
    one, line = (PLANNED["dose-3"].draw(task, 7)(size, 0).tokens for task, size in ((TASK, 12), (packed, 4)))
    assert line.shape == (4, packed.n_ctx) and torch.equal(line.view(12, -1), one)


def test_a_dose_takes_guessable_families_last() -> None:
    labels = TASK.rows("forget_T").labels
    guessable = set(labels.loc[labels["subset"] == "trivial", "family"])
    core = len(set(labels["family"])) - len(guessable)
    assert guessable and core
    assert not families(core) & guessable


def test_a_dose_that_the_task_does_not_have_is_refused() -> None:
    with pytest.raises(
        UndoProbeError, match=r"doses asks for 80 families, but T has \d+: give smaller doses"
    ):
        dose_rows(TASK, 80, 0)


def test_one_block_is_trained_and_all_else_is_as_it_was() -> None:
    model = tiny.half_trained()
    for layer in (0, 1):
        names = changed(model, after(f"block-{layer}"))
        assert names and all(name.startswith(f"blocks.{layer}.") for name in names)


def test_low_rank_adapters_change_the_blocks_matrices_by_their_rank() -> None:
    model = tiny.half_trained()
    for rank in (1, 4):
        trained = dict(after(f"lora-{rank}").named_parameters())
        assert changed(model, after(f"lora-{rank}")) == set(block_matrices(model))
        for name in block_matrices(model):
            change = as_matrix(name, trained[name] - model.get_parameter(name)).detach().double()
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == rank


def test_the_attackers_noise_comes_first_and_the_utility_limit_is_a_share_of_what_was_there_before() -> None:
    model = tiny.knowing()
    config = CONFIG.model_copy(update={"steps": 1, "eval_steps": (0, 1)})
    recovery = RECOVERY.model_copy(update={"alpha": 0.9, "beta": 1.0})
    recipe = ATTACKS["noised"](recovery, 2)["noised"]
    _, correct = attack_once(model, TASK, config, 1e-6, Context(seed=1), recipe)
    assert correct["retain"][0].mean() == tiny.accuracy(model, "retain_test")
    # a rate of 1e-6 repairs nothing: what is gone after a step went with the noise
    assert correct["forget"][1].mean() < correct["forget"][0].mean() - 0.3
    mild = ATTACKS["noised"](RECOVERY, 2)["noised"]
    noised = attack_once(model, TASK, config, 1e-6, Context(seed=1), mild)[0].model
    name = "blocks.0.mlp.W_in"
    ratio = noised.get_parameter(name).norm() / model.get_parameter(name).norm()
    assert 0.88 < float(ratio.detach()) < 0.95


def test_rounding_and_pruning_touch_the_blocks_matrices_and_train_nothing() -> None:
    model = tiny.half_trained()
    for name in ("quantised-2", "quantised-8", "pruned-0.25"):
        done, _ = attack_once(model, TASK, CONFIG, 3e-3, Context(seed=1), PLANNED[name])
        assert changed(model, done.model) == set(block_matrices(model))
        assert done.ledger.steps == 0 and done.stopped == "the weights were changed once"
    weights = dict(after("pruned-0.25").named_parameters())
    for name in block_matrices(model):
        assert int((weights[name] == 0).sum()) == round(0.25 * weights[name].numel())
    columns = as_matrix("W_Q", after("quantised-2").get_parameter("blocks.0.attn.W_Q")).T
    assert max(len(column.unique()) for column in columns) <= 3


def key(name: str, config: Any = None, **recovery: Any) -> str:
    section = CONFIG.model_copy(update={"recovery": RECOVERY.model_copy(update=recovery)})
    run = (config or preset("smoke")).model_copy(update={"attack": section})
    return Store.key(attack_identity(Target(Arm("original"), "parent", 1e-3, 0, name), run, "task"))


def test_what_an_attack_tries_is_in_its_key_and_what_the_others_try_is_not() -> None:
    assert len({key(name) for name in PLANNED}) == len(PLANNED)
    for name in PLANNED:
        assert key(name, doses=(1, 3, 5), ranks=(1, 2, 4), shares=(0.25, 0.5), threshold=0.9) == key(name)
    assert key("noised", alpha=0.2) != key("noised")
    assert key("mixed", alpha=0.2) == key("mixed")


def test_a_relearning_attack_has_the_key_it_had_before_there_were_others() -> None:
    what = attack_identity(Target(Arm("original"), "parent", 1e-3, 1), preset("tiny"), "task")
    assert what == {
        "kind": "relearn",
        "version": 3,
        "settings": {
            "steps": 200,
            "batch_size": 64,
            "eval_steps": [0, 1, 2, 5, 10, 25, 50, 100, 200],
            "learning_rate": 1e-3,
        },
        "seed": what["seed"],
        "parents": ["parent"],
        "task": "task",
    }
    others = preset("tiny", 'attack.also=["mixed","lora"]', "attack.recovery.ranks=[3]")
    assert attack_identity(Target(Arm("original"), "parent", 1e-3, 1), others, "task") == what


def test_a_named_attack_on_one_model_is_a_curve_of_its_own() -> None:
    model = tiny.suppressed().model
    before = content_hash(model)
    rows: Any = pd.DataFrame(list(relearn_model(model, TASK, CONFIG, attack="dose-3").rows))
    assert set(rows["attack"]) == {"dose-3"}
    assert set(rows["kind"]) == {"rate", "oracle_rate", "cumulative_max", "cumulative_max_utility"}
    curve = relearn_model(model, TASK, CONFIG, attack="quantised-8")
    rows = pd.DataFrame(list(curve.rows))
    assert set(rows["kind"]) == {"single"} and sorted(set(rows["step"])) == [0, 1]
    assert rows["learning_rate"].isna().all() and curve.stopped == "nothing was trained"
    assert content_hash(model) == before
    with pytest.raises(
        UndoProbeError, match=r"there is no attack 'lora-2' here: config.also is .*lora-1, lora-4"
    ):
        relearn_model(model, TASK, CONFIG, attack="lora-2")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('attack.also=["mixed","mixed"]', "attack.also has mixed twice: name each once"),
        (
            'attack.also=["zero_shot"]',
            "attack.also.0 is \"zero_shot\": input should be 'mixed', 'retain_only'",
        ),
        ("attack.recovery.ranks=[2,2]", "attack.recovery.ranks has 2 twice"),
        (
            "attack.recovery.bits=[16]",
            "attack.recovery.bits.0 is 16: input should be less than or equal to 8",
        ),
        ("attack.recovery.rank=[2]", "did you mean 'ranks'"),
    ],
)
def test_attacks_that_cannot_be_are_refused(override: str, said: str) -> None:
    with pytest.raises(UndoProbeError) as error:
        preset("tiny", override)
    assert said in str(error.value)
