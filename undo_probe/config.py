"""What a run is: one frozen schema for presets, files, overrides and the saved record (presets.py reads them).

Longer than 400 lines because it is the whole schema, a short class for each section.
"""

import re
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from undo_probe.collapse_config import BudgetConfig, CIRConfig, CollapseFit, RepSelectConfig
from undo_probe.task_config import (
    ArithmeticConfig,
    Count,
    InventedConfig,
    Rate,
    Section,
    Share,
    Steps,
    TaskConfig,
    refuse_twice,
)

FORMAT = 1


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

    A source is a folder that ``save_model`` of undo_probe or ``save_pretrained`` of transformers wrote, a GGUF file, an
    id on the Hugging Face hub with its ``revision``, or ``smollm`` (see ``make smollm``). The shape is then the
    source's, the section ``model`` is not looked at, and nothing is trained here; a run has no oracles, for nobody has
    the data that the source was trained on.
    """

    source: str = ""
    revision: str = "main"


class GivenConfig(Section):
    """Finished models that a run only reads: ``unlearned`` by the names a reader shall see, and perhaps an ``oracle``.

    Places are as in :class:`OriginalConfig`. The oracle is a model that was trained like the original, without what is
    to be forgotten. Nothing is then unlearned, noised or distilled here, and the sections that say how are not looked
    at.
    """

    unlearned: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. ]*$")], Annotated[str, Field(min_length=1)]
    ] = {}
    oracle: str = ""


class UnlearnFit(FitConfig):
    """What unlearning methods share: a short run at a constant rate, and the weight of the retain term.

    ``budget`` ends it where harm reaches a limit; :class:`UnlearnConfig` has one for all methods.
    """

    later: ClassVar[tuple[str, ...]] = ("budget",)
    steps: Steps = 100
    learning_rate: Rate = 3e-4
    warmup: Steps = 0
    schedule: Literal["constant", "cosine"] = "constant"
    retain_weight: Annotated[float, Field(ge=0.0)] = 5.0
    budget: BudgetConfig | None = None


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


Method = Literal[
    "maxent", "graddiff", "rmu", "npo", "simnpo", "undial", "sam", "repnoise", "cir", "repselect"
]


class UnlearnConfig(Section):
    """``method`` is the teacher that is noised and distilled; ``also`` are measured beside it.

    ``budget`` holds all of them to the same harm, but for those that have a budget of their own.
    """

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
    cir: CIRConfig = CIRConfig()
    repselect: RepSelectConfig = RepSelectConfig()
    budget: BudgetConfig | None = None

    def of(self, method: str) -> UnlearnFit | CollapseFit:
        """The section of a method, with the budget that it is held to."""
        section = getattr(self, method)
        return section if section.budget else section.model_copy(update={"budget": self.budget})


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
        refuse_twice("noise.alphas", self.alphas)
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
            refuse_twice(f"attack.recovery.{key}", getattr(self, key))
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
        refuse_twice("attack.learning_rates", self.learning_rates)
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


Also = Literal["depth", "lens", "weights", "tuned_lens", "attribution", "subspaces"]


class ScoreConfig(Section):
    """What the scorecard measures.

    ``also`` names measures beside the usual ones: ``depth``, from which block on the states no longer carry the
    answer (by patching them into the original); ``lens``, the answer read after every block; ``tuned_lens``, the same
    through maps fitted once on the original; ``attribution``, which heads and MLPs write the answer; ``weights``, how
    far and where to training moved; ``subspaces``, what forget and retain rows share, and which of it updates use.
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
        refuse_twice("arms.twins", self.twins)
        refuse_twice("arms.placebo_alphas", self.placebo_alphas)
        refuse_twice("arms.rates", self.rates)
        refuse_twice("arms.times", self.times)
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
    given: GivenConfig = GivenConfig()
    unlearn: UnlearnConfig = UnlearnConfig()
    noise: NoiseConfig = NoiseConfig()
    distill: DistillConfig = DistillConfig()
    attack: AttackConfig = AttackConfig()
    score: ScoreConfig = ScoreConfig()
    arms: ArmsConfig = ArmsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_room()
        if self.given.unlearned and not self.original.source:
            raise ValueError(
                "given.unlearned needs the model that was unlearned: give original.source as well"
            )
        if self.given.oracle and not self.given.unlearned:
            raise ValueError("given.oracle stands beside an unlearned model: give given.unlearned as well")
        if self.given.unlearned:
            return self  # what unlearning, noise and arms say is not looked at
        if self.original.source:
            self._check_arms()
        else:
            self.check_places(self.model.n_layers, self.model.n_heads, "the model")
        for name, variation in self.arms.variations.items():
            self.varied(name, variation)
        return self

    @property
    def teacher(self) -> str:
        """The method of the unlearned model that a run is about: the one that teaches, or the first that was given."""
        return next(iter(self.given.unlearned), self.unlearn.method)

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
        for name in ("cir", "repselect"):
            highest = max(getattr(self.unlearn, name).layers or (0,))
            if highest >= n_layers:
                raise ValueError(
                    f"unlearn.{name}.layers names {highest}, but {whose} has layers 0..{n_layers - 1}"
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

    def varied(
        self, name: str, variation: Variation
    ) -> tuple[NoiseRule, DistillConfig, UnlearnFit | CollapseFit]:
        """The noise rule, the distillation and the teacher's settings of a variation.

        Raises:
            ValueError: an unknown setting, or a value that does not fit.
        """
        teacher = self.unlearn.of(self.unlearn.method)
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
