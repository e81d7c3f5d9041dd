"""The task section of a configuration: one class a task, and the base of every section."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
FOLDS = 5
Fold = Annotated[int, Field(ge=0, lt=FOLDS)]
Shots = Annotated[int, Field(ge=0, le=64)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    later: ClassVar[tuple[str, ...]] = ()
    """Settings newer than stored results: a fingerprint names them only where they are not at their default."""

    def identity(self, *without: str) -> dict[str, Any]:
        """The settings as a fingerprint holds them, ``without`` some."""
        later = {name for kind in type(self).__mro__ for name in vars(kind).get("later", ())}
        at_default = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*without, *at_default})


def refuse_twice(key: str, numbers: tuple[float, ...]) -> None:
    """Models and attacks are named by their number, so two may not have the same name."""
    names = [f"{number:g}" for number in numbers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{key} has {name} twice: name each once, and apart in six digits")


class ArithmeticConfig(Section):
    """The arithmetic task: operand ranges and how families are divided.

    ``word_problems`` is the share of questions that are asked in words. ``background`` is a folder of ``.txt`` files,
    whose text makes up ``background_share`` of the rows that are not only about forgetting; its
    ``background_words`` most frequent words are told apart.

    With ``forget_factors`` the two sides are entangled: only products and quotients in which one of these factors takes
    part are forgotten, all others are kept beside sums and differences.

    With ``shots`` so many solved rows fit before a question: what is trained on is that many rows and one more in line.
    """

    name: Literal["arithmetic"] = "arithmetic"
    later: ClassVar[tuple[str, ...]] = ("forget_factors", "shots")
    add_max: Annotated[int, Field(ge=2, le=50)] = 50
    mul_max: Annotated[int, Field(ge=2, le=31)] = 20
    forget_shares: tuple[Share, Share, Share, Share] = (0.45, 0.35, 0.1, 0.1)
    retain_held_out: Annotated[float, Field(ge=0.0, le=0.45)] = 0.1
    word_problems: Share = 0.0
    background: str | None = None
    background_share: Rate = 0.75
    background_words: Count = 2000
    forget_factors: tuple[Count, ...] = ()
    shots: Shots = 0

    @model_validator(mode="after")
    def _something_is_forgotten(self) -> Self:
        if not sum(self.forget_shares):
            raise ValueError("task.forget_shares are all 0: give T, V, W and D a share of the families")
        return self

    @model_validator(mode="after")
    def _factors_on_either_side(self) -> Self:
        factors = self.forget_factors
        refuse_twice("task.forget_factors", factors)
        for factor in factors:
            if factor > self.mul_max:
                raise ValueError(
                    f"task.forget_factors has {factor}, but factors go from 1 to task.mul_max ({self.mul_max})"
                )
        if factors and self.mul_max - len(factors) < 2:
            raise ValueError(
                "task.forget_factors leaves fewer than two factors whose products are kept: name fewer, or none to "
                "forget all products"
            )
        if factors and (self.word_problems or self.background is not None):
            raise ValueError(
                "task.forget_factors does not go with task.word_problems or task.background: leave one of them out"
            )
        return self


class InventedConfig(Section):
    """Facts about invented people: how many there are, what is asked of each, and how they are divided.

    A fact is a person's answer to one of ``relations``, one of ``answers``; it can be asked in so many ``wordings``,
    of which one, drawn for each fact, is kept for testing. ``forget_share`` of the people are to be forgotten.
    ``unlearn_wordings`` says whether unlearning and distillation meet the test's wording of the forget people's
    questions (``all``) or whether its forgetting has to carry over (``trained``); it is never met with retain people.
    ``shots``: as in :class:`ArithmeticConfig`. With a ``fold`` the people of T and V are dealt anew: V is that fifth of
    them, T the others, so that over five folds each is once in V.

    With ``forget_relations`` the two sides are entangled: only so many facts of each forget person, drawn for each, are
    forgotten, and the others are kept beside those of retain people.
    """

    name: Literal["invented"] = "invented"
    later: ClassVar[tuple[str, ...]] = ("shots", "fold", "forget_relations")
    people: Annotated[int, Field(ge=8, le=1000)] = 240
    relations: Annotated[int, Field(ge=1, le=6)] = 4
    answers: Annotated[int, Field(ge=2, le=16)] = 12
    wordings: Annotated[int, Field(ge=2, le=4)] = 4
    forget_share: Rate = 0.4
    forget_shares: tuple[Share, Share, Share, Share] = (0.35, 0.35, 0.2, 0.1)
    unlearn_wordings: Literal["all", "trained"] = "all"
    shots: Shots = 0
    fold: Fold | None = None
    forget_relations: Annotated[int, Field(ge=1, le=5)] | None = None

    @model_validator(mode="after")
    def _something_is_forgotten(self) -> Self:
        if not sum(self.forget_shares):
            raise ValueError("task.forget_shares are all 0: give T, V, W and D a share of the forget people")
        if self.forget_relations is not None and self.forget_relations >= self.relations:
            raise ValueError(
                f"task.forget_relations={self.forget_relations} of task.relations={self.relations} leaves nothing of a "
                "forget person to keep: give fewer, or null to forget all of them"
            )
        return self


class TextSource(Section):
    """Where the documents of one language come from.

    ``path`` is a file, a folder or a glob below ``task.text``, of .txt, .md, .jsonl, .jsonl.gz or .parquet files; or
    ``dataset`` names what ``datasets`` can stream, an id on its hub or a local folder, with its configuration
    (``subset``), ``split`` and ``revision``; what was prepared from it once is kept, so name a revision. ``column``
    holds the text in either. ``language`` is its name in reports.
    """

    language: Annotated[str, Field(pattern=r"^\w[\w ()-]{0,40}$")]
    path: str = ""
    dataset: str = ""
    subset: str = ""
    split: str = "train"
    revision: str = ""
    column: str = "text"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.path) == bool(self.dataset):
            raise ValueError(f"the text of {self.language} needs either a path below task.text or a dataset")
        return self


class LanguageConfig(Section):
    """Two languages, one to keep and one to forget, in the user's own text; nothing is shipped.

    ``text`` is the user's folder. A byte-level BPE of ``vocab`` tokens is trained on as many characters of one language
    as of the other, at most ``tokenizer_characters`` of each. Documents shorter than ``min_characters`` are left out,
    and so are those that share at least ``near_duplicates`` of their eight-word shingles with an earlier one (null:
    only exact copies); reading a language stops after ``max_tokens``. A row has ``n_ctx`` tokens. Shares are of
    tokens, dealt in whole documents; at most ``eval_rows`` rows of a split are evaluated. What is prepared is kept in
    ``cache``, by default in the user's cache folder.
    """

    name: Literal["language"] = "language"
    text: str = ""
    retain: TextSource = TextSource(language="English", path="english")
    forget: TextSource = TextSource(language="Korean", path="korean")
    vocab: Annotated[int, Field(ge=258, le=262_144)] = 2048
    n_ctx: Annotated[int, Field(ge=8, le=8192)] = 64
    tokenizer_characters: Count = 2_000_000
    min_characters: Count = 100
    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.5
    max_tokens: Count | None = None
    forget_shares: tuple[Share, Share, Share, Share] = (0.65, 0.12, 0.15, 0.08)
    retain_held_out: Annotated[float, Field(gt=0.0, le=0.45)] = 0.05
    eval_rows: Annotated[int, Field(ge=4)] = 128
    cache: str = ""

    @model_validator(mode="after")
    def _two_languages(self) -> Self:
        if not sum(self.forget_shares):
            raise ValueError("task.forget_shares are all 0: give T, V, W and D a share of the documents")
        if self.retain.language == self.forget.language:
            raise ValueError(
                f"both sides are called {self.forget.language}: keep one language and forget another"
            )
        return self


class QuestionSource(Section):
    """Where multiple choice questions come from: the columns are those of ``cais/wmdp`` and ``cais/mmlu``.

    ``question`` is text, ``choices`` a list of texts, ``answer`` the number of the right one (from 0) or its letter;
    ``subject`` may be missing. ``path`` is a .jsonl, .jsonl.gz, .parquet or .csv file below ``task.text`` (in .csv the
    list is written as JSON); or ``dataset`` names what ``datasets`` loads. ``name`` is what reports say.

    A question is asked after ``shots`` answered ones of its subject, the first of ``shots_path`` or ``shots_split``;
    before them stands ``header``, in which ``{subject}`` means the subject.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w ()-]{0,40}$")]
    path: str = ""
    dataset: str = ""
    subset: str = ""
    split: str = "test"
    revision: str = ""
    shots: Annotated[int, Field(ge=0, le=20)] = 0
    shots_path: str = ""
    shots_split: str = "dev"
    header: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.path) == bool(self.dataset):
            raise ValueError(f"the questions {self.name} need either a path below task.text or a dataset")
        if self.shots and self.path and not self.shots_path:
            raise ValueError(f"the questions {self.name} have {self.shots} shots: say where in shots_path")
        return self


class AskedConfig(Section):
    """What tasks share that ask the user's own questions or facts of a model with a tokenizer of its own.

    ``fold``: as in :class:`InventedConfig`, of families.
    """

    later: ClassVar[tuple[str, ...]] = ("fold",)
    tokenizer: str = ""
    tokenizer_revision: str = "main"
    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.5
    max_text_tokens: Count | None = None
    min_characters: Count = 100
    forget_shares: tuple[Share, Share, Share, Share] = (0.4, 0.4, 0.1, 0.1)
    retain_shares: tuple[Share, Share, Share] = (0.6, 0.15, 0.25)
    cache: str = ""
    fold: Fold | None = None

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not sum(self.forget_shares) or not sum(self.retain_shares):
            raise ValueError("task.forget_shares or task.retain_shares are all 0: give each split a share")
        return self


class ChoiceConfig(AskedConfig):
    """Multiple choice questions, some to forget and some to keep, answered by a letter.

    ``text`` is the user's folder. ``forget_text``, ``retain_text`` and ``distill_text`` are what is trained on, where
    given; the questions are then only asked. ``tokenizer`` is a folder or hub id, by default ``original.source``; of a
    model trained from scratch it is a byte-level BPE of ``vocab`` tokens. Longer questions than ``n_ctx`` tokens are
    left out. ``permute`` draws the order of the options, so that a letter carries nothing. Questions that share
    ``near_duplicates`` of their three-word runs are one family (null: only equal ones are, of which one is kept).
    ``retain_shares`` are those of training, development and test; at most ``max_questions`` of a side are used.
    """

    name: Literal["choice"] = "choice"
    text: str = ""
    forget: QuestionSource = QuestionSource(name="forget", path="forget.jsonl")
    retain: QuestionSource = QuestionSource(name="retain", path="retain.jsonl")
    forget_text: TextSource | None = None
    retain_text: TextSource | None = None
    distill_text: TextSource | None = None
    vocab: Annotated[int, Field(ge=270, le=262_144)] = 1024
    n_ctx: Annotated[int, Field(ge=16, le=8192)] = 256
    permute: bool = True
    max_questions: Count | None = None

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if self.forget.name == self.retain.name:
            raise ValueError(
                f"both sides are called {self.forget.name}: keep some questions and forget others"
            )
        return self


Relation = Literal["capital", "currency", "language", "continent", "symbol"]


class FactSource(Section):
    """Where the facts of one side come from: relations of the tables that are shipped, or the user's own rows.

    ``relations`` are of countries, and ``symbol`` of chemical elements. Otherwise ``path`` is a .jsonl, .jsonl.gz,
    .parquet or .csv file below ``task.text``, or ``dataset`` what ``datasets`` loads, with rows of one of three kinds:
    ``prompt`` and ``answer`` (and where wanted ``paraphrases``, ``distractors``, ``entity``, ``group``); ``question``,
    ``choices`` and ``answer`` as in ``cais/wmdp`` and ``cais/mmlu``; or ``question`` and ``answer`` as in
    ``locuslab/TOFU``, with ``paraphrased_question`` and ``perturbed_answer``. ``name`` is what reports call them.
    ``groups`` limits either to some groups, of countries their continents.
    """

    relations: tuple[Relation, ...] = ()
    groups: tuple[str, ...] = ()
    name: Annotated[str, Field(pattern=r"^(\w[\w ()-]{0,40})?$")] = ""
    path: str = ""
    dataset: str = ""
    subset: str = ""
    split: str = "train"
    revision: str = ""

    @property
    def title(self) -> str:
        """What reports call the facts of a file or data set."""
        return self.name or (self.path or self.dataset).rpartition("/")[2].partition(".")[0]

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if [bool(self.relations), bool(self.path), bool(self.dataset)].count(True) != 1:
            raise ValueError(
                "a side of the facts needs one of relations, a path below task.text or a dataset, and only one: with a "
                "path or dataset give relations=[]"
            )
        return self


class FactsConfig(AskedConfig):
    """Facts that a pretrained model may know, some to forget and some to keep, completed from a prompt.

    Each fact is asked in some wordings, of which one is kept for testing; a row is answered where the right answer is
    the likeliest of the ``candidates``, the others being answers of like facts of the relation. ``known`` is a file
    that ``undo-probe known`` made with the model at hand: facts that it does not know are left out. ``retain_text`` is
    neutral text of the user's that is kept too. ``text``, ``tokenizer``, ``vocab``, ``near_duplicates`` (of the user's
    rows without ``entity``), ``retain_shares`` and ``cache``: as in :class:`ChoiceConfig`. Facts longer than ``n_ctx``
    tokens are left out.
    """

    name: Literal["facts"] = "facts"
    text: str = ""
    forget: FactSource = FactSource(relations=("capital",))
    retain: FactSource = FactSource(relations=("continent", "symbol"))
    retain_text: TextSource | None = None
    known: str = ""
    candidates: Annotated[int, Field(ge=2, le=16)] = 6
    vocab: Annotated[int, Field(ge=257, le=262_144)] = 1024
    n_ctx: Annotated[int, Field(ge=8, le=8192)] = 24


TASKS: dict[str, type[Section]] = {
    "arithmetic": ArithmeticConfig,
    "invented": InventedConfig,
    "language": LanguageConfig,
    "choice": ChoiceConfig,
    "facts": FactsConfig,
}


def _task_name(section: Any) -> str:
    """Which task a section describes; one that does not say is arithmetic, and so is what is no section at all."""
    if isinstance(section, dict):
        return str(section.get("name", "arithmetic"))
    return getattr(section, "name", "arithmetic")


TaskConfig = Annotated[
    Annotated[ArithmeticConfig, Tag("arithmetic")]
    | Annotated[InventedConfig, Tag("invented")]
    | Annotated[LanguageConfig, Tag("language")]
    | Annotated[ChoiceConfig, Tag("choice")]
    | Annotated[FactsConfig, Tag("facts")],
    Discriminator(_task_name),
]
