"""A configuration is checked before anything runs, and says what to mend."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from undo_probe.config import NoiseConfig, OriginalConfig, RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.presets import PRESETS, differences, load_config, override, preset, upgrade
from undo_probe.task_config import ArithmeticConfig, InventedConfig


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_its_saved_form_is_a_config_again(name: str, tmp_path: Path) -> None:
    config = preset(name)
    assert config.name == name
    saved = tmp_path / "config.json"
    saved.write_text(config.model_dump_json())
    assert load_config(saved) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_preset_is_found_by_name_unless_a_file_of_that_name_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny", "seed=4") == preset("tiny", "seed=4")
    Path("tiny").write_text("seed = 7")
    assert load_config("tiny").seed == 7


def test_toml_and_json_say_the_same_thing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "mine"\n[noise]\nalphas = [0.8]\nbeta = 0.05\n')
    (tmp_path / "a.json").write_text('{"name": "mine", "noise": {"alphas": [0.8], "beta": 0.05}}')
    from_toml, from_json = load_config(tmp_path / "a.toml"), load_config(tmp_path / "a.json")
    assert from_toml == from_json
    assert from_toml.noise == NoiseConfig(alphas=(0.8,), beta=0.05)


def test_a_file_may_start_with_the_byte_order_mark_that_some_editors_write(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 5\n")
    assert load_config(tmp_path / "a.toml").seed == 5


def test_a_file_that_extends_a_preset_changes_only_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "smoke"\n[distill]\ntolerance = 0.1\n')
    config = load_config(tmp_path / "mine.toml")
    assert config.name == "mine"
    assert differences(preset("smoke"), config) == [
        'name: "smoke" -> "mine"',
        "distill.tolerance: 0.05 -> 0.1",
    ]


def test_extending_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "smal"')
    with pytest.raises(UndoProbeError, match=r"no preset 'smal'; did you mean 'small'\?"):
        load_config(tmp_path / "mine.toml")


def test_overrides_take_numbers_lists_text_and_whole_sections() -> None:
    config = preset(
        "tiny",
        "seed=3",
        "noise.alphas=[0.4, 0.8]",
        "unlearn.method=rmu",
        'unlearn.also=["maxent"]',
        "unlearn.rmu.c=6.5",
        'distill={"steps": 5}',
    )
    assert (config.seed, config.noise.alphas, config.unlearn.method) == (3, (0.4, 0.8), "rmu")
    assert (config.unlearn.also, config.unlearn.rmu.c, config.distill.steps) == (("maxent",), 6.5, 5)
    assert preset("tiny").seed == 0


def test_overrides_go_over_a_file_and_a_preset_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "smoke"\nseed = 5\n[noise]\nbeta = 0.3\n')
    config = load_config(tmp_path / "mine.toml", "noise.beta=0.4", "model.d_mlp=8")
    assert (config.seed, config.noise.beta, config.model.d_mlp) == (5, 0.4, 8)


def test_later_overrides_win_and_none_gives_the_same_object() -> None:
    config = preset("tiny")
    assert override(config) is config
    assert override(config, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("word", ["seed", "=3", "--seed", ""])
def test_what_is_no_assignment_is_shown_the_form(word: str) -> None:
    with pytest.raises(UndoProbeError, match=r"is no override: write section\.key=value"):
        preset("tiny", word)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("noise.alpha=0.4", r"noise has no key 'alpha'; did you mean 'alphas'\?"),
        ("nois.beta=0.1", r"the configuration has no key 'nois'; did you mean 'noise'\?"),
        ("unlearn.maxent.stepz=1", r"unlearn\.maxent has no key 'stepz'; did you mean 'steps'\?"),
        ("seed.x=1", r"seed has no key 'x'"),
        ("noise.alphas.0=0.4", r"noise\.alphas has no key '0'"),
    ],
)
def test_an_override_of_an_unknown_key_names_the_nearest_known_one(assignment: str, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        preset("tiny", assignment)


def test_an_unknown_key_in_a_file_names_its_place_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[unlearn.rmu]\nlayr = 0\n")
    with pytest.raises(
        UndoProbeError, match=r"a\.toml: unknown key 'unlearn\.rmu\.layr'; did you mean 'layer'\?"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("noise.alphas=[1.2]", r"noise\.alphas\.0 is 1\.2: .*less than or equal to 1"),
        ("noise.alphas=[-0.1]", r"noise\.alphas\.0 is -0\.1: .*greater than or equal to 0"),
        ("noise.beta=NaN", r"noise\.beta is NaN: .*finite"),
        ("original.learning_rate=Infinity", r"original\.learning_rate is Infinity: "),
        ("original.clip=1e999", r"original\.clip is Infinity: .*finite"),
        ("noise.beta=much", r'noise\.beta is "much": .*valid number'),
        ("seed=-1", r"seed is -1: "),
        ("seed=1.5", r"seed is 1\.5: .*integer"),
        ("seed=true", r"seed is true: .*integer"),
        ('seed="3"', r'seed is "3": .*integer'),
        ("noise.beta=false", r"noise\.beta is false: .*number"),
        ("arms.second_seed=1", r"arms\.second_seed is 1: .*boolean"),
        ("name=3", r"name is 3: .*string"),
        ("noise=0.4", r"noise is 0\.4: "),
        ("noise.alphas=0.4", r"noise\.alphas is 0\.4: "),
        ("unlearn.method=maxnet", r"unlearn\.method is \"maxnet\": .*'maxent'"),
        ("model.n_heads=5", r"d_model \(64\) must be a multiple of n_heads \(5\)"),
        ("unlearn.rmu.layer=2", r"unlearn\.rmu\.layer is 2, but the model has layers 0\.\.1"),
        ("attack.learning_rates=[]", r"attack\.learning_rates is empty"),
        ("attack.eval_steps=[0,300]", r"attack\.eval_steps goes beyond attack\.steps \(200\)"),
        ("format=2", r"format is 2: "),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(assignment: str, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        preset("tiny", assignment)


@pytest.mark.parametrize(
    "assignment",
    [
        "noise.alphas=[0.4, 0.8, 0.4]",
        "attack.learning_rates=[0.001, 0.001]",
        "attack.eval_steps=[0, 10, 5]",
        "attack.eval_steps=[5, 10]",
        "attack.eval_steps=[]",
        "task.forget_shares=[0, 0, 0, 0]",
    ],
)
def test_settings_that_would_fail_only_hours_later_are_refused_at_once(assignment: str) -> None:
    with pytest.raises(UndoProbeError, match=assignment.partition("=")[0].replace(".", r"\.")):
        preset("tiny", assignment)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("task.peopel=30", r"task has no key 'peopel'; did you mean 'people'\?"),
        ('task={"name": "invented", "peopel": 30}', r"unknown key 'task\.peopel'; did you mean 'people'\?"),
        ('task={"people": 30}', r"unknown key 'task\.people': it belongs to the task invented"),
        ('task={"name": "invented", "invented": 3}', r"overrides: unknown key 'task\.invented'$"),
        ("task.people=3", r"overrides: task\.people is 3: .*greater than or equal to 8"),
        ("task.forget_shares=[0, 0, 0, 2]", r"task\.forget_shares\.3 is 2: .*less than or equal to 1"),
        ("task.forget_shares=[0, 0, 0, 0]", r"task\.forget_shares are all 0"),
        (
            "task.name=invnted",
            r"task\.name is \"invnted\": expected one of arithmetic, invented, language, choice, facts; did you mean",
        ),
        (
            "task.name=null",
            r"task\.name is null: expected one of arithmetic, invented, language, choice, facts$",
        ),
        (
            "task.name=[1]",
            r"task\.name is \[1\]: expected one of arithmetic, invented, language, choice, facts$",
        ),
        ("task=3", r"overrides: task is 3: .*object"),
        ("task=null", r"overrides: task is null: .*object"),
    ],
)
def test_a_wrong_task_section_is_explained_as_the_task_that_it_names(assignment: str, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        preset("facts-tiny", assignment)


def test_a_task_section_that_does_not_say_is_arithmetic(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[task]\nadd_max = 9\n")
    assert load_config(tmp_path / "a.toml").task == ArithmeticConfig(add_max=9)
    assert preset("facts-tiny", 'task={"mul_max": 7}').task == ArithmeticConfig(mul_max=7)


def test_another_task_starts_from_its_own_defaults(tmp_path: Path) -> None:
    expected = InventedConfig(people=60)
    assert preset("tiny", "task.name=invented", "task.people=60").task == expected
    assert preset("facts-tiny", "task.people=60", "task.name=invented").task == expected
    (tmp_path / "a.toml").write_text('extends = "tiny"\n[task]\nname = "invented"\npeople = 60\n')
    config = load_config(tmp_path / "a.toml")
    assert (config.task, config.original) == (expected, preset("tiny").original)
    (tmp_path / "a.toml").write_text('extends = "facts-tiny"\n[task]\nanswers = 3\n')
    assert load_config(tmp_path / "a.toml", "task.people=60").task == InventedConfig(answers=3, people=60)


def test_several_problems_are_listed_at_once() -> None:
    with pytest.raises(UndoProbeError) as found:
        preset("tiny", "noise.beta=2", "seed=-1", "model.n_layers=0")
    text = str(found.value)
    assert "has 3 problems" in text
    assert all(place in text for place in ("noise.beta", "seed", "model.n_layers"))


def test_an_unknown_preset_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(
        UndoProbeError, match=r"no preset 'tny'; did you mean 'tiny'\?: the presets are tiny, small, smoke"
    ):
        preset("tny")


def test_a_missing_file_is_said_to_be_neither_file_nor_preset() -> None:
    with pytest.raises(UndoProbeError, match=r"there is no file and no preset 'smoky'; did you mean 'smoke'"):
        load_config("smoky")


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"cannot be read .*expected a UTF-8 \.toml or \.json file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.toml", b"seed = = 3", "is not valid TOML"),
        ("a.json", b"{seed: 3}", "is not valid JSON"),
        ("a.json", b"[1, 2]", "holds a list: expected a table of settings"),
        ("a.json", b"[" * 100_000, "nested too deeply|not valid JSON"),
        ("a.toml", b"\xff\xfe\x00", "cannot be read"),
        ("a.toml", b"format = 99", "has format 99; this undo_probe reads format 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    name: str, content: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UndoProbeError, match=text) as found:
        load_config(tmp_path / name)
    assert name in str(found.value)


def test_a_config_cannot_be_changed() -> None:
    config = preset("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_the_present_format_is_left_as_it_is() -> None:
    values = preset("tiny").model_dump(mode="json")
    assert upgrade(values, "here") == values


def test_differences_lists_each_changed_setting_and_nothing_else() -> None:
    tiny = preset("tiny")
    assert differences(tiny, tiny) == []
    changed = preset("tiny", "noise.alphas=[0.8]", "unlearn.rmu.c=3")
    assert differences(tiny, changed) == [
        "unlearn.rmu.c: 20.0 -> 3.0",
        "noise.alphas: [0.2, 0.4, 0.6, 0.8] -> [0.8]",
    ]


def test_a_section_given_in_part_keeps_its_other_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"original": {"steps": 7}}))
    assert load_config(path).original == OriginalConfig(steps=7)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("noise.layers=[2]", "noise names 2, but the model has 2 layers of 4 heads, counted from 0"),
        ('noise.heads=["0.4"]', "noise names 0.4, but the model has 2 layers of 4 heads"),
        ('noise={"layers": [0], "heads": ["0.1"], "alphas": [0.4]}', "layers and heads are both given"),
        ("noise.layers=[]", "layers or heads is empty: leave it null"),
        ('distill={"loss": "reverse_kl", "top_k": 4}', "distill.top_k needs loss = 'forward_kl'"),
        ('arms.variations={"a": {"noise": {"bta": 0}}}', "arms.variations.a.noise.bta: Extra inputs are not"),
        (
            'arms.variations={"a": {"noise": {"beta": 2}}}',
            "arms.variations.a.noise.beta: Input should be less",
        ),
        (
            'arms.variations={"a": {"noise": {"layers": [7]}}}',
            "arms.variations.a.noise names 7, but the model has",
        ),
        ('arms.variations={"twin x": {}}', "arms.variations has the name 'twin x': use small letters"),
        ('arms.variations={"A": {}}', "arms.variations has the name 'A'"),
    ],
)
def test_other_noise_and_distillation_are_checked_before_anything_runs(assignment: str, text: str) -> None:
    with pytest.raises(UndoProbeError) as refused:
        preset("tiny", assignment)
    assert text in str(refused.value)
