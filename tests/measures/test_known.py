"""The known set is what asking for every answer of every relation would give, and its file is checked."""

from pathlib import Path

import atlas
import numpy as np
import pytest
import tiny

from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import continuations
from undo_probe.measures.known import answered, known, known_of
from undo_probe.models import HookedTransformer, build, content_hash
from undo_probe.presets import preset
from undo_probe.tasks.facts import FactsTask
from undo_probe.tasks.known_set import read_known


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> FactsTask:
    return FactsTask(atlas.config(atlas.write(tmp_path_factory.mktemp("atlas") / "text")), seed=0)


@pytest.fixture(scope="module")
def model(task: FactsTask) -> HookedTransformer:
    return build(ModelConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=32), task.d_vocab, task.n_ctx, seed=0)


def test_reading_few_answers_finds_what_reading_all_of_them_does(
    task: FactsTask, model: HookedTransformer
) -> None:
    asked = [wordings[0] for wordings in task.every_wording()][:40]
    # with each answer taken for the right one in turn, some are the likeliest and most are not
    turned = [
        type(one)(one.kept, 0, one.prompt, one.options, one.texts, row % len(one.options))
        for row, one in enumerate(asked)
    ]
    every = continuations(model, [one.prompt for one in asked], [one.options for one in asked])
    best = [int(said.log_probability.argmax()) for said in every]
    likeliest = [
        type(one)(one.kept, 0, one.prompt, one.options, one.texts, at)
        for one, at in zip(asked, best, strict=True)
    ]
    both = [*turned, *likeliest]
    right, log_p = answered(model, both)
    assert right.tolist() == [one.answer == at for one, at in zip(both, best * 2, strict=True)]
    assert 40 <= right.sum() < 60
    wanted = [said.log_probability[one.answer] for one, said in zip(both, every * 2, strict=True)]
    np.testing.assert_allclose(log_p, wanted, rtol=1e-4)


def test_the_file_holds_every_fact_once_and_names_the_model(
    task: FactsTask, model: HookedTransformer, tmp_path: Path
) -> None:
    table = known(model, task, tmp_path / "known.json").to_dict("records")
    assert [(line["relation"], line["facts"]) for line in table] == [("seats", 32), ("ores", 32)]
    found = read_known(str(tmp_path / "known.json"))
    assert found.model == content_hash(model)
    assert {*found.right} == {wordings[0].kept.fact.name for wordings in task.every_wording()}
    for line in table:
        own = np.array([each["right"] for each in found.lines if each["relation"] == line["relation"]])
        assert own.shape == (32, 3)
        assert line["known"] == (own.sum(axis=1) >= 2).sum()
        assert [line[f"wording_{at}"] for at in range(3)] == own.sum(axis=0).tolist()
        assert line["in_all"] == own.all(axis=1).sum()
        assert 0 < line["probability"] < 1


def test_what_has_no_facts_or_no_model_is_refused(model: HookedTransformer, tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="a known set is of facts, but the task is arithmetic"):
        known(tiny.model(), tiny.task(), tmp_path / "known.json")
    with pytest.raises(
        UndoProbeError, match=r"original\.source is empty: give the model whose knowledge is asked"
    ):
        known_of(preset("tiny", "task.name=facts"), tmp_path / "known.json")
    assert not list(tmp_path.iterdir())
