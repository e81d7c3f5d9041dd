"""What a run is: one frozen schema for presets, files, overrides and the saved record (presets.py reads them).

Longer than 400 lines because it is the whole schema, a short class for each section.
"""

import re
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

FORMAT = 1
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Shots = Annotated[int, Field(ge=0, le=64)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    later: ClassVar[tuple[str, ...]] = ()
    """Settings newer than stored results: a fingerprint names them only where they are not at their default."""

    def identity(self, *without: str) -> dict[str, Any]:
        """The settings as a fingerprint holds them, ``without`` some."""
        at_default = {
            name for name in self.later if getattr(self, name) == type(self).model_fields[name].default
        }
        return self.model_dump(mode="json", exclude={*without, *at_default})


def _refuse_twice(key: str, numbers: tuple[float, ...]) -> None:
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
        _refuse_twice("task.forget_factors", factors)
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
    ``shots``: as in :class:`ArithmeticConfig`.
    """

    name: Literal["invented"] = "invented"
    later: ClassVar[tuple[str, ...]] = ("shots",)
    people: Annotated[int, Field(ge=8, le=1000)] = 240
    relations: Annotated[int, Field(ge=1, le=6)] = 4
    answers: Annotated[int, Field(ge=2, le=16)] = 12
    wordings: Annotated[int, Field(ge=2, le=4)] = 4
    forget_share: Rate = 0.4
    forget_shares: tuple[Share, Share, Share, Share] = (0.35, 0.35, 0.2, 0.1)
    unlearn_wordings: Literal["all", "trained"] = "all"
    shots: Shots = 0

    @model_validator(mode="after")
    def _something_is_forgotten(self) -> Self:
        if not sum(self.forget_shares):
            raise ValueError("task.forget_shares are all 0: give T, V, W and D a share of the forget people")
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


class ChoiceConfig(Section):
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
    tokenizer: str = ""
    tokenizer_revision: str = "main"
    vocab: Annotated[int, Field(ge=270, le=262_144)] = 1024
    n_ctx: Annotated[int, Field(ge=16, le=8192)] = 256
    permute: bool = True
    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.5
    max_questions: Count | None = None
    max_text_tokens: Count | None = None
    min_characters: Count = 100
    forget_shares: tuple[Share, Share, Share, Share] = (0.4, 0.4, 0.1, 0.1)
    retain_shares: tuple[Share, Share, Share] = (0.6, 0.15, 0.25)
    cache: str = ""

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if not sum(self.forget_shares) or not sum(self.retain_shares):
            raise ValueError("task.forget_shares or task.retain_shares are all 0: give each split a share")
        if self.forget.name == self.retain.name:
            raise ValueError(
                f"both sides are called {self.forget.name}: keep some questions and forget others"
            )
        return self


TASKS: dict[str, type[Section]] = {
    "arithmetic": ArithmeticConfig,
    "invented": InventedConfig,
    "language": LanguageConfig,
    "choice": ChoiceConfig,
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
    | Annotated[ChoiceConfig, Tag("choice")],
    Discriminator(_task_name),
]


class ModelConfig(Section):
    """A small decoder built from scratch."""

    n_layers: Count = 2
    d_model: Count = 64
    n_heads: Count = 4
    d_mlp: Count = 256
    act_fn: Literal["gelu", "relu", "silu"] = "gelu"
    normalization: Literal["LN", "RMS"] = "LN"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        return self


class FitConfig(Section):
    """One training run of the loop: AdamW, a schedule in absolute steps, batches of rows.

    The cosine ends after ``horizon`` steps, or with the last step where that is null. ``sharpness`` is the radius
    of sharpness-aware minimisation (arXiv 2010.01412): the gradient is taken that far uphill; 0 is without.
    """

    steps: Steps = 600
    batch_size: Count = 256
    learning_rate: Rate = 3e-3
    warmup: Steps = 20
    schedule: Literal["constant", "cosine"] = "cosine"
    final_fraction: Share = 0.1
    horizon: Count | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    accumulate: Count = 1
    sharpness: Annotated[float, Field(ge=0.0)] = 0.0
    eval_every: Count = 20


class OriginalConfig(FitConfig):
    """How the original is trained; or ``source``, which it is loaded from.

    A source is a folder that ``save_model`` of undo_probe or ``save_pretrained`` of transformers wrote, or an id on the
    Hugging Face hub with its ``revision``. The shape is then the source's, the section ``model`` is not looked at, and
    nothing is trained here; a run has no oracles, for nobody has the data that the source was trained on.
    """

    source: str = ""
    revision: str = "main"


class UnlearnFit(FitConfig):
    """What unlearning methods share: a short run at a constant rate, and the weight of the retain term."""

    steps: Steps = 100
    learning_rate: Rate = 3e-4
    warmup: Steps = 0
    schedule: Literal["constant", "cosine"] = "constant"
    retain_weight: Annotated[float, Field(ge=0.0)] = 5.0


class OutputFit(UnlearnFit):
    """Methods that work on outputs; ``retain_loss = "kl"`` holds the retain outputs to what they were."""

    later: ClassVar[tuple[str, ...]] = ("retain_loss",)
    retain_loss: Literal["cross_entropy", "kl"] = "cross_entropy"


class MaxEntConfig(OutputFit):
    """MaxEnt: forward KL from the uniform distribution on forget answers, cross-entropy on retain."""


class GradDiffConfig(OutputFit):
    """GradDiff: gradient ascent on forget answers, descent on retain."""


class RMUConfig(UnlearnFit):
    """RMU: forget states of one block pushed to ``c * u``, retain states held where they were.

    ``tensors`` name the trained parameters of each block up to ``layer``, or only of ``blocks``; ``target`` says how
    ``u`` is drawn (``centred`` removes the all-ones part, which LayerNorm cannot see).
    """

    steps: Steps = 300
    learning_rate: Rate = 1e-3
    later: ClassVar[tuple[str, ...]] = ("blocks",)
    layer: Steps = 0
    blocks: tuple[Steps, ...] | None = None
    c: Annotated[float, Field(gt=0.0)] = 20.0
    retain_weight: Annotated[float, Field(ge=0.0)] = 100.0
    target: Literal["uniform", "gaussian", "centred"] = "centred"
    tensors: tuple[str, ...] = ("mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out")

    @model_validator(mode="after")
    def _blocks_matter(self) -> Self:
        above = [block for block in self.blocks or () if block > self.layer]
        if above or self.blocks == ():
            what = f"names {above[0]}, which lies behind layer {self.layer}" if above else "is empty"
            raise ValueError(f"blocks {what}: name blocks up to the layer whose states are moved")
        return self


class NPOConfig(OutputFit):
    """NPO: the forget answers become less likely than in the original; ``beta`` says how soon that is enough."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1


class SimNPOConfig(NPOConfig):
    """SimNPO: NPO without the original, with the answer's length divided out."""

    beta: Annotated[float, Field(gt=0.0)] = 2.5
    gamma: float = 0.0


class UNDIALConfig(OutputFit):
    """UNDIAL: the original's own distribution with the true token's logit lowered by ``strength``."""

    strength: Annotated[float, Field(ge=0.0)] = 10.0


class SAMConfig(MaxEntConfig):
    """SAM: MaxEnt at the worst point within ``sharpness`` of the weights (the robust baseline of 2506.06278)."""

    sharpness: Annotated[float, Field(ge=0.0)] = 0.01


class RepNoiseConfig(UnlearnFit):
    """RepNoise on top of the MaxEnt model: forget states of every MLP drawn toward Gaussian noise.

    ``noise_weight`` weighs the distance to the noise (the sheet's beta), ``ascent_weight`` the loss that is
    climbed at every layer (alpha).
    """

    noise_weight: Annotated[float, Field(ge=0.0)] = 0.1
    ascent_weight: Annotated[float, Field(ge=0.0)] = 1.0


Method = Literal["maxent", "graddiff", "rmu", "npo", "simnpo", "undial", "sam", "repnoise"]


class UnlearnConfig(Section):
    """``method`` is the teacher that is noised and distilled; ``also`` are measured beside it."""

    method: Method = "maxent"
    also: tuple[Method, ...] = ("graddiff", "rmu")
    maxent: MaxEntConfig = MaxEntConfig()
    graddiff: GradDiffConfig = GradDiffConfig()
    rmu: RMUConfig = RMUConfig()
    npo: NPOConfig = NPOConfig()
    simnpo: SimNPOConfig = SimNPOConfig()
    undial: UNDIALConfig = UNDIALConfig()
    sam: SAMConfig = SAMConfig()
    repnoise: RepNoiseConfig = RepNoiseConfig()


class NoiseRule(Section):
    """How weights are damaged, and which of them.

    ``perturb`` is ``W <- (1 - alpha) W + alpha beta N`` (arXiv 2506.06278; ``beta = 0`` only shrinks); ``prune``
    sets the share alpha of each matrix with the smallest weights to zero; ``jitter`` moves each matrix as far as
    ``perturb`` would, in a random direction, and shrinks nothing. N is drawn by ``xavier`` (the paper's) or
    as the model's own weights were at the start (``init``; with ``beta = 1`` the way goes to a fresh model, and with
    ``alpha = 1`` the chosen layers are reset). ``gains`` says where a norm's gain shrinks to: ``one``, its initial
    value, or ``zero``.

    Everything is touched, or only the blocks of ``layers``, or only single ``heads`` (``"layer.head"``); of these,
    with ``top_delta``, only this share of all weights: the ones that unlearning moved furthest.
    """

    rule: Literal["perturb", "prune", "jitter"] = "perturb"
    beta: Share = 0.1
    draw: Literal["xavier", "init"] = "xavier"
    gains: Literal["one", "zero"] = "one"
    layers: tuple[Steps, ...] | None = None
    heads: tuple[Annotated[str, Field(pattern=r"^\d+\.\d+$")], ...] | None = None
    top_delta: Rate | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.layers is not None and self.heads is not None:
            raise ValueError("layers and heads are both given: choose whole layers or single heads")
        if () in (self.layers, self.heads):
            raise ValueError("layers or heads is empty: leave it null to touch everything")
        return self


class NoiseConfig(NoiseRule):
    """The noise of a run, at several strengths."""

    alphas: tuple[Share, ...] = (0.2, 0.4, 0.6, 0.8)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _refuse_twice("noise.alphas", self.alphas)
        return self


class DistillConfig(FitConfig):
    """Forward KL from the teacher on all operations, until retain accuracy is back.

    The stop rule is the paper's: mean retain accuracy within ``tolerance`` of the teacher's, or on a task scored in
    bits, cross-entropy within that share above the teacher's; looked at every ``eval_every`` steps on ``retain_dev``;
    ``steps`` is the cap. With ``forget_tolerance`` the student's score on the forget set D must also not be more than
    that above the teacher's. ``stop = "never"`` trains for ``steps`` steps whatever comes back.

    ``top_k`` compares only the teacher's likeliest tokens and the rest as one, and keeps them on disk for all
    students that see the same batches. ``activations`` weighs the distance between the two residual streams after
    every block. ``text = "retain"`` leaves the teacher's forget text out.
    """

    steps: Steps = 2400
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    loss: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    top_k: Count | None = None
    activations: Annotated[float, Field(ge=0.0)] = 0.0
    text: Literal["all", "retain"] = "all"
    tolerance: Share = 0.05
    forget_tolerance: Share | None = None
    stop: Literal["retain", "never"] = "retain"
    eval_every: Count = 20

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if self.top_k is not None and self.loss != "forward_kl":
            raise ValueError("distill.top_k needs loss = 'forward_kl': the teacher's likeliest tokens decide")
        return self


Recovery = Literal[
    "mixed", "retain_only", "noised", "dose", "lora", "subspace", "block", "quantised", "pruned", "few_shot"
]


class RecoveryConfig(Section):
    """What the attacks of ``attack.also`` try, each number an attack of its own.

    ``doses`` are numbers of T's families; ``alpha`` and ``beta`` the attacker's own shrink-and-perturb before
    ``noised``; ``ranks`` those of ``lora``, ``dimensions`` those of ``subspace``; ``bits`` and ``shares`` what
    ``quantised`` rounds to and ``pruned`` takes away; ``shots`` how many solved questions of T stand before one in
    ``few_shot``, drawn ``draws`` times for each question; they need room, see ``task.shots``.

    ``threshold`` is the share of the original's accuracy on V that must come back for a rank, dimension or block to
    count as enough.
    """

    doses: tuple[Count, ...] = (1, 5, 20, 80)
    alpha: Share = 0.1
    beta: Share = 0.1
    ranks: tuple[Count, ...] = (1, 2, 4, 8, 16)
    dimensions: tuple[Count, ...] = (4, 16, 64, 256)
    bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = (8, 4)
    shares: tuple[Share, ...] = (0.1, 0.3, 0.5)
    shots: tuple[Count, ...] = (1, 2, 4, 8)
    draws: Count = 5
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for key in ("doses", "ranks", "dimensions", "bits", "shares", "shots"):
            _refuse_twice(f"attack.recovery.{key}", getattr(self, key))
        return self


class AttackConfig(Section):
    """Relearning on forget set T, at every rate, in float32; evaluated on V and on retain.

    ``also`` names further attacks, which share rates, seeds, steps and batch size; ``recovery`` is what they try.

    ``utility`` is the share of its retain accuracy that an attacked model must keep to count under the
    utility limit; the grid is extended by factors of 3, ``max_extensions`` times on either side, while the best
    rate of any arm lies at its edge; ``noised`` attacks the noised models too.
    """

    learning_rates: tuple[Rate, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    seeds: Count = 1
    steps: Count = 200
    batch_size: Count = 64
    eval_steps: tuple[Steps, ...] = (0, 1, 2, 5, 10, 25, 50, 100, 200)
    utility: Share = 0.9
    max_extensions: Steps = 2
    noised: bool = False
    also: tuple[Recovery, ...] = ()
    recovery: RecoveryConfig = RecoveryConfig()

    @model_validator(mode="after")
    def _steps_cover(self) -> Self:
        if not self.learning_rates:
            raise ValueError("attack.learning_rates is empty: give at least one rate")
        _refuse_twice("attack.learning_rates", self.learning_rates)
        twice = [name for name in self.also if self.also.count(name) > 1]
        if twice:
            raise ValueError(f"attack.also has {twice[0]} twice: name each once")
        if self.eval_steps[:1] != (0,) or any(a >= b for a, b in pairwise(self.eval_steps)):
            raise ValueError("attack.eval_steps must start at 0 (before the attack) and rise")
        if self.eval_steps[-1] > self.steps:
            raise ValueError(f"attack.eval_steps goes beyond attack.steps ({self.steps})")
        return self


class ProbeConfig(Section):
    """Linear probes: folds by family, the regularisation grid, and how many shuffles the control has."""

    folds: Annotated[int, Field(ge=2)] = 5
    penalties: tuple[Annotated[float, Field(gt=0.0)], ...] = (1e-3, 1e-2, 1e-1, 1.0)
    shuffles: Count = 3
    max_rows: Count = 800


Also = Literal["depth", "lens", "weights"]


class ScoreConfig(Section):
    """What the scorecard measures.

    ``also`` names measures beside the usual ones: ``depth``, from which block on the states no longer carry the
    answer (by patching them into the original); ``lens``, the answer read after every block; ``weights``, how far and
    where to training moved.
    """

    probes: ProbeConfig = ProbeConfig()
    junk_controls: Annotated[int, Field(ge=20)] = 20
    draws: Annotated[int, Field(ge=199)] = 1999
    also: tuple[Also, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        twice = [name for name in self.also if self.also.count(name) > 1]
        if twice:
            raise ValueError(f"score.also has {twice[0]} twice: name each once")
        return self


# first words of the variants that a run names itself
_TAKEN = ("b", "twin", "placebo", "fresh", "noise", "equal", "rate", "snapshot", "round", "serial")


class Variation(Section):
    """The sweep once more with other settings: ``unlearn`` (of the teacher), ``noise`` and ``distill`` say which.

    For example ``{"noise": {"beta": 0}}``, or ``{"distill": {"text": "retain"}}``; at ``alphas``, by default at
    ``arms.rates_alpha``.
    """

    unlearn: dict[str, Any] = {}
    noise: dict[str, Any] = {}
    distill: dict[str, Any] = {}
    alphas: tuple[Share, ...] | None = None


class ArmsConfig(Section):
    """Which control arms a run trains besides the stages themselves.

    ``twins`` and ``placebo_alphas`` are noise levels of their own; a control at a level that ``noise.alphas`` also
    has is the one to compare with. ``oracle_matching`` trains the original, and a fresh model, for so many steps to
    give the oracle's outputs: equal behaviour, of which only one should be robust.

    ``rounds`` goes on from every student: noised again and taught by the same teacher; ``serial`` unlearns the student
    once more first, and that is its new teacher. ``variations`` name other settings of noise and distillation, see
    :class:`Variation`.

    The last five ask whether alpha or something that travels with it makes the difference: every alpha again for
    as many steps as the largest took (``equal_steps``); ``rates_alpha`` again at other distillation ``rates``;
    every alpha again for these multiples (``times``) of the steps at which its stop rule fired; and ``snapshots``
    moments, evenly spaced in log steps, on the way there.
    """

    twins: tuple[Share, ...] = (0.4,)
    unlearn_and_distill: bool = True
    second_seed: bool = False
    placebo_alphas: tuple[Share, ...] = ()
    placebo_rmu: bool = True
    noise_seeds: Count = 1
    oracle_matching: Steps = 0
    rounds: Count = 1
    serial: Count = 1
    variations: dict[str, Variation] = {}
    equal_steps: bool = False
    rates: tuple[Rate, ...] = ()
    rates_alpha: Share = 0.4
    times: tuple[Annotated[float, Field(gt=0.0, le=100.0)], ...] = ()
    snapshots: Annotated[int, Field(ge=0, le=99)] = 0

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _refuse_twice("arms.twins", self.twins)
        _refuse_twice("arms.placebo_alphas", self.placebo_alphas)
        _refuse_twice("arms.rates", self.rates)
        _refuse_twice("arms.times", self.times)
        for name in self.variations:
            if (
                not re.fullmatch(r"[a-z][a-z0-9 _.-]*", name)
                or name.split()[0] in _TAKEN
                or re.match(r"x\d", name)
            ):
                raise ValueError(
                    f"arms.variations has the name {name!r}: use small letters, digits, spaces, and none of "
                    f"{', '.join(_TAKEN)} as the first word"
                )
        if 1.0 in self.times:
            raise ValueError("arms.times has 1, which is the student itself: leave it out")
        return self


class RunConfig(Section):
    """Everything a run is. A saved config is a valid config."""

    format: Literal[1] = FORMAT
    name: str = "custom"
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    precision: Literal["no", "bf16"] = "no"
    threads: Count = 1
    task: TaskConfig = ArithmeticConfig()
    model: ModelConfig = ModelConfig()
    original: OriginalConfig = OriginalConfig(steps=1500, batch_size=128, learning_rate=4e-3)
    unlearn: UnlearnConfig = UnlearnConfig()
    noise: NoiseConfig = NoiseConfig()
    distill: DistillConfig = DistillConfig()
    attack: AttackConfig = AttackConfig()
    score: ScoreConfig = ScoreConfig()
    arms: ArmsConfig = ArmsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_room()
        if self.original.source:
            self._check_arms()
        else:
            self.check_places(self.model.n_layers, self.model.n_heads, "the model")
        for name, variation in self.arms.variations.items():
            self.varied(name, variation)
        return self

    def _check_room(self) -> None:
        """Refuses a few-shot attack on models that cannot read so much."""
        most = max(self.attack.recovery.shots, default=0)
        if "few_shot" not in self.attack.also:
            return
        if not isinstance(self.task, ArithmeticConfig | InventedConfig):
            raise ValueError(
                f"attack.also has few_shot, but the task {self.task.name} has no room for solved questions before "
                "one: leave it out"
            )
        if most > self.task.shots:
            raise ValueError(
                f"attack.also has few_shot with {most} solved questions before one, but task.shots is "
                f"{self.task.shots}: raise task.shots to {most}, or give a smaller attack.recovery.shots"
            )

    def _check_arms(self) -> None:
        """Refuses what cannot be had where the original is not trained here."""
        need = {
            "second_seed": self.arms.second_seed,
            "oracle_matching": self.arms.oracle_matching,
            "placebo_alphas": self.arms.placebo_alphas,
        }
        asked = [name for name, value in need.items() if value]
        if asked:
            raise ValueError(
                f"arms.{asked[0]} needs models that were trained from scratch, but the original comes from "
                f"original.source ({self.original.source}): leave it out, or train the original here"
            )

    def check_places(self, n_layers: int, n_heads: int, whose: str) -> None:
        """Refuses layers and heads that a model of this size does not have; ``whose`` names it.

        Raises:
            ValueError: a setting names one.
        """
        if self.unlearn.rmu.layer >= n_layers:
            raise ValueError(
                f"unlearn.rmu.layer is {self.unlearn.rmu.layer}, but {whose} has layers 0..{n_layers - 1}"
            )
        rules: dict[str, NoiseRule] = {"noise": self.noise}
        for name, variation in self.arms.variations.items():
            rules[f"arms.variations.{name}.noise"] = self.varied(name, variation)[0]
        for key, rule in rules.items():
            places = [(layer, 0, str(layer)) for layer in rule.layers or ()]
            places += [(*map(int, head.split(".")), head) for head in rule.heads or ()]
            for layer, head, text in places:
                if layer >= n_layers or head >= n_heads:
                    size = f"{n_layers} layers of {n_heads} heads"
                    raise ValueError(f"{key} names {text}, but {whose} has {size}, counted from 0")

    def varied(self, name: str, variation: Variation) -> tuple[NoiseRule, DistillConfig, UnlearnFit]:
        """The noise rule, the distillation and the teacher's settings of a variation.

        Raises:
            ValueError: an unknown setting, or a value that does not fit.
        """
        teacher = getattr(self.unlearn, self.unlearn.method)
        found: list[Any] = []
        sections = {"noise": (NoiseRule, self.noise), "distill": (DistillConfig, self.distill)}
        for section, (kind, start) in {**sections, "unlearn": (type(teacher), teacher)}.items():
            own = {key: getattr(start, key) for key in kind.model_fields}
            try:
                found.append(kind.model_validate({**own, **getattr(variation, section)}))
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in first["loc"])
                known = ", ".join(kind.model_fields)
                raise ValueError(
                    f"arms.variations.{name}.{section}.{key}: {first['msg']} (settings are {known})"
                ) from None
        return found[0], found[1], found[2]
