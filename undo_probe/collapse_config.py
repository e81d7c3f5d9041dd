"""The sections of what collapses gradients, and of the budget of harm that any unlearning may be held to."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from undo_probe.task_config import Count, Rate, Section, Steps, refuse_twice

Nats = Annotated[float, Field(gt=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
CollapsedLoss = Literal["answer", "mlp_breaking", "dot", "norm", "cosine", "maxent", "graddiff", "npo"]


class BudgetConfig(Section):
    """How far unlearning may disturb what is to be kept: KL from the model as it came, in nats a token.

    ``retain`` limits it on the development rows of retain, ``siblings`` on those that are most like what is forgotten
    (the same relation; of invented people those both of whose names forgotten people bear), ``neutral`` on running
    text; what is null is only measured. Unlearning ends where the first limit is met, after a step of which only the
    part is taken that meets it. Of each set ``rows`` rows are read, after every step.

    Two limits match controls by other things than harm: ``moved`` is the L2 norm of the change of all weights,
    ``forgotten`` what the answers of D lose on average, in nats.
    """

    retain: Nats | None = None
    siblings: Nats | None = None
    neutral: Nats | None = None
    moved: Positive | None = None
    forgotten: Nats | None = None
    rows: Count = 256

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.limits:
            raise ValueError(
                "a budget without a limit: give retain, siblings or neutral, in nats a token, or another"
            )
        return self

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        found = {
            name: getattr(self, name) for name in ("retain", "siblings", "neutral", "moved", "forgotten")
        }
        return {name: limit for name, limit in found.items() if limit is not None}


class CollapseFit(Section):
    """What CIR and RepSelect share: plain steps along a collapsed gradient, without an optimiser's state.

    A step moves the trained ``weights`` (of MLPs, of all linear maps, or endings such as ``mlp.W_out``) by
    ``step_norm``, their L2 norm over all of them together. ``loss`` names what is descended: ``answer`` is minus the
    cross-entropy of forget answers; ``mlp_breaking`` and the circuit breakers ``dot``, ``norm`` and ``cosine`` read
    ``layers`` (all if null); ``beta`` is NPO's, ``retain_weight`` GradDiff's. A gradient is summed over ``accumulate``
    batches. After each step, ``retain_rate`` times the plain gradient of KL on retain is taken back.

    ``tokens`` says whose vectors make up the directions: of all places before the answer's end but the first, or only
    of the places that predict an answer.
    """

    steps: Steps = 60
    batch_size: Count = 256
    accumulate: Count = 1
    eval_every: Count = 10
    step_norm: Positive = 0.1
    weights: Literal["mlp", "all"] | tuple[str, ...] = "mlp"
    loss: CollapsedLoss = "answer"
    layers: tuple[Steps, ...] | None = None
    beta: Positive = 0.1
    retain_weight: Annotated[float, Field(ge=0.0)] = 1.0
    retain_rate: Annotated[float, Field(ge=0.0)] = 0.0
    tokens: Literal["all", "answers"] = "all"
    budget: BudgetConfig | None = None

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if () in (self.weights, self.layers):
            raise ValueError("weights or layers is empty: name some, or leave the default for all")
        refuse_twice("layers", self.layers or ())
        return self


class CIRConfig(CollapseFit):
    """CIR: the mean and leading principal components go out of every map's inputs and output gradients.

    ``k_act`` and ``k_grad`` count the mean; 0 leaves a side alone, null is ``3 sqrt(d_model)``: 24 of 64, 192 of 4096.
    The directions are those of ``basis_batches`` batches of forget rows, retain rows or both, or ``random`` ones of
    the same number as a control, and are found anew every ``refresh`` steps. ``form`` is one projection of the
    finished gradient on each side, or the sum over ``tokens`` of collapsed vectors.

    With a ``band`` an update is not freed from directions but held to some: those from its first number on, before its
    second, the mean being number 0 and the first component 1. It shows what an update there does.
    """

    k_act: Steps | None = None
    k_grad: Steps | None = None
    band: tuple[Steps, Count] | None = None
    softness: Literal["hard", "soft"] = "hard"
    basis: Literal["forget", "retain", "both", "random"] = "forget"
    basis_batches: Count = 4
    refresh: Count = 5
    form: Literal["projected", "tokens"] = "projected"

    @model_validator(mode="after")
    def _a_band_of_components(self) -> Self:
        if self.band is None:
            return self
        first, end = self.band
        if first >= end or (self.k_act, self.k_grad) != (None, None) or self.basis == "random":
            raise ValueError(
                f"the band {first} to {end} is empty, or stands beside k_act, k_grad or random directions: give two "
                "rising numbers, and leave those out"
            )
        return self


class RepSelectConfig(CollapseFit):
    """RepSelect: singular vectors of the gradient that is left once an adversary has learnt the forget set again.

    The adversary is a LoRA of ``adversary_rank``, trained on forget rows for ``adversary_steps`` before each of
    ``steps`` steps; 0 is without. The ``k`` leading singular vectors of every matrix are taken out softly on both
    sides. Under a budget each step is as long as its share of the budget allows; without one, ``step_norm``.
    """

    steps: Steps = 1
    accumulate: Count = 8
    k: Count | None = None
    softness: Literal["hard", "soft"] = "soft"
    adversary_rank: Count = 8
    adversary_steps: Steps = 20
    adversary_rate: Rate = 1e-3
