"""Distillation from a teacher that hides features, into students that start at random, noised, or know the data.

The teacher is a rug whose forget outputs are ablated: its behaviour is clean, its hidden state is not. What a student
takes over is read off its encoder exactly (:func:`undo_probe.persian_rug.erasure.readable`), with a probe beside it.
The suite's distillation stage reads tokens through a HookedTransformer; what both share is its training loop,
:func:`undo_probe.training.fit`.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.intervals import t_interval
from undo_probe.persian_rug import erasure
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.effects import divide, errors
from undo_probe.persian_rug.engineered import features
from undo_probe.persian_rug.theory import variance
from undo_probe.persian_rug.training import Lesson, RugConfig, objective, step_flops, trained_parts
from undo_probe.randomness import generator
from undo_probe.training import Context, Cost, fit, resolve_device

if TYPE_CHECKING:
    import pandas as pd

ALPHAS = (0.2, 0.4, 0.6, 0.8)
PROBE = 64
"""Samples a dimension from which the probe is fitted."""
QUANTITIES = ("imitation", "retain", "forget", "r2_forget", "r2_retain", "probe_forget", "probe_retain")


@dataclass(frozen=True, eq=False)
class Student:
    """Where a student starts and what it is taught; without a lesson it is measured as it is."""

    name: str
    model: Autoencoder
    lesson: Lesson | None


def imitate(teacher: Autoencoder, device: str = "cpu") -> Lesson:
    """Answers are the teacher's, on all features; it answers on ``device``, where the student is trained."""
    teacher = deepcopy(teacher).to(device)

    def lesson(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return x, teacher(x)

    return lesson


def filtered(forget: Int[Tensor, " feature"], shown: bool = True) -> Lesson:
    """Answers are the true features but for those to forget, which are nought; not ``shown``, they are never on."""

    def lesson(x: Tensor) -> tuple[Tensor, Tensor]:
        clean = x.index_fill(1, forget.to(x.device), 0.0)
        return (x if shown else clean), clean

    return lesson


def teach(
    student: Autoencoder, lesson: Lesson, config: RugConfig, context: Context | None = None
) -> Autoencoder:
    """A trained copy of the student, all of it or, with ``config.frozen_encoder``, its decoder.

    Steps, rate, batch and seed are the configuration's; its start is not used.
    """
    context = context or Context()
    device = resolve_device(context.device)
    loss, cost = objective(config, device, lesson), Cost(flops=step_flops(config))
    return fit(student, config.fit, loss, context, cost=cost, trainable=trained_parts(config)).model.to("cpu")


def exact_imitation(teacher: Autoencoder, outputs: Int[Tensor, " feature"], seed: int = 0) -> Autoencoder:
    """A student that has the teacher's pre-activations on these outputs, made from them and nothing else.

    ``W = W_out W_in`` of these rows by singular values, in a random basis, other outputs silent. Its encoder spans the
    rows of W: all that the teacher's encoder spans, once there are n_d independent ones. So R^2 of every feature is the
    teacher's, also of those that neither of them ever outputs.
    """
    w = (teacher.W_out[outputs] @ teacher.W_in).detach().double()
    left, values, right = torch.linalg.svd(w, full_matrices=False)
    n_d = len(teacher.W_in)
    root = values[:n_d].sqrt()
    made = erasure.ablate_outputs(teacher, torch.arange(len(teacher.b)))
    with torch.no_grad():
        made.W_in.zero_()
        made.W_in[: len(root)] = (root[:, None] * right[:n_d]).to(made.W_in)
        made.W_out[outputs, : len(root)] = (left[:, :n_d] * root).to(made.W_out)[:, : len(root)]
        made.b[outputs] = teacher.b[outputs]
    return erasure.rotate(made, seed)


def students(
    config: RugConfig, forget: Int[Tensor, " feature"], alphas: Sequence[float] = ALPHAS, device: str = "cpu"
) -> tuple[Autoencoder, list[Student]]:
    """The teacher, and what is compared: itself, an exact imitation, and the students that are trained."""
    rug = start(Autoencoder(config.n_s, config.n_d), "rug", config.p, config.seed)
    teacher = erasure.ablate_outputs(rug, forget)
    fresh = start(Autoencoder(config.n_s, config.n_d), "random", config.p, config.seed)
    keep = torch.ones(config.n_s).index_fill(0, forget, 0.0).nonzero()[:, 0]
    copied, clean, unseen = imitate(teacher, device), filtered(forget), filtered(forget, shown=False)
    noised = [
        Student(f"noised {alpha:g}, imitates", erasure.perturb(teacher, alpha, seed=config.seed), copied)
        for alpha in alphas
    ]
    return teacher, [
        Student("teacher", teacher, None),
        Student("exact imitation", exact_imitation(teacher, keep, config.seed), None),
        *noised,
        Student("random, imitates", fresh, copied),
        Student("random, clean targets", fresh, clean),
        Student("teacher, clean targets", teacher, clean),
        Student("random, never shown", fresh, unseen),
    ]


def distillation_table(
    config: RugConfig | None = None,
    *,
    phi: float = 0.1,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 4096,
    context: Context | None = None,
) -> "pd.DataFrame":
    """What every student says and what its hidden state still tells, a line a student and seed.

    Every seed has its own rug, forget set, start, noise and features.

    Args:
        config: sizes and training; by default 256 features at r = 1/4, p = .045, 1500 steps.
        phi: share of the features to forget.
        alphas: of the noised students.
        seeds: at least one; three for intervals worth printing (:func:`over_seeds`).
        rows: held-out rows.
        context: device, threads and progress.

    Returns:
        ``imitation``, mean square error against the teacher on kept outputs; ``retain``, against the features;
        ``forget``, that of the forgotten ones over their variance; ``r2_forget`` and ``r2_retain``, exact;
        ``probe_forget`` and ``probe_retain``, what a probe finds (freed of the error of its fit).

    Raises:
        UndoProbeError: no seed, or a share that leaves nothing to forget.
    """
    import pandas as pd

    if not len(seeds):
        raise UndoProbeError("no seed was given: expected at least one, and three for an interval")
    # no folder: each student would go on from where another one was killed
    context = replace(context or Context(), folder=None)
    device = resolve_device(context.device)
    found = []
    for seed in seeds:
        own = (config or RugConfig()).model_copy(update={"seed": seed})
        forget, keep = divide(own.n_s, phi, seed)
        teacher, compared = students(own, forget, alphas, device)
        x = features(rows + PROBE * own.n_d, own.n_s, own.p, generator(seed, "held-out students", own.n_s))
        for student in compared:
            model = student.model
            if student.lesson is not None:
                model = teach(model, student.lesson, own, context)
            found.append(
                {
                    "student": student.name,
                    "seed": seed,
                    **_state(model, teacher, x, forget, keep, rows, own.p),
                }
            )
    return pd.DataFrame(found)


def _state(
    model: Autoencoder, teacher: Autoencoder, x: Tensor, forget: Tensor, keep: Tensor, rows: int, p: float
) -> dict[str, float]:
    held, fitting = x[:rows], x[rows:]
    with torch.no_grad():
        imitation = (model(held) - teacher(held))[:, keep].square().mean()
    wrong, exact = errors(model, held), erasure.readable(model)
    probes = erasure.probed(model, torch.cat([fitting, held]), torch.arange(x.shape[1]), len(fitting))
    values = (
        imitation, wrong[keep].mean(), wrong[forget].mean() / float(variance(p)),
        exact[forget].mean(), exact[keep].mean(), probes[forget].mean(), probes[keep].mean(),
    )  # fmt: skip
    return {name: float(value) for name, value in zip(QUANTITIES, values, strict=True)}


def over_seeds(table: "pd.DataFrame", level: float = 0.95) -> "pd.DataFrame":
    """Mean and Student's interval over seeds of every quantity, a line a student and quantity."""
    import pandas as pd

    found = []
    for student, own in table.groupby("student", sort=False):
        for name in QUANTITIES:
            one = t_interval(own[name].to_numpy(), level)
            found.append((student, name, one.value, one.low, one.high, one.n))
    return pd.DataFrame(found, columns=["student", "quantity", "value", "low", "high", "seeds"])
