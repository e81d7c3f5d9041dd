"""A linear subspace of activation space, with where it was found and on what evidence."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import linalg
from undo_probe.errors import UndoProbeError
from undo_probe.randomness import generator


@dataclass(frozen=True, eq=False)
class Subspace:
    """An orthonormal basis in the residual stream; a direction is the case of one column.

    ``mean`` is the mean activation at ``hook`` (None if unknown), used where a component is set to its mean
    and not to zero. ``evidence`` says how good the subspace is, as plain numbers.
    """

    basis: Float[Tensor, "d_model k"]
    mean: Float[Tensor, " _"] | None = None
    hook: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a basis that is not orthonormal: every projection here relies on it.

        Raises:
            UndoProbeError: not orthonormal, or the mean has another width.
        """
        basis = self.basis.detach().double()
        error = float(
            (basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)).abs().max()
        )
        if not error < 1e-4:
            raise UndoProbeError(
                f"the basis is not orthonormal (off by {error:.2g}): Subspace.from_vectors makes one"
            )
        if self.mean is not None and len(self.mean) != self.d_model:
            raise UndoProbeError(
                f"the mean has {len(self.mean)} entries, the basis {self.d_model}: they must be equal"
            )

    @classmethod
    def from_vectors(
        cls,
        vectors: Float[Tensor, "d_model k"] | Float[Tensor, " d_model"],
        hook: str = "",
        mean: Float[Tensor, " d_model"] | None = None,
        evidence: dict[str, Any] | None = None,
    ) -> "Subspace":
        """The span of the columns of ``vectors`` (or of one vector).

        Raises:
            UndoProbeError: the columns are zero, not finite or linearly dependent.
        """
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        return cls(linalg.orthonormal_basis(columns), mean, hook, dict(evidence or {}))

    @classmethod
    def random(cls, d_model: int, k: int, seed: int, hook: str = "") -> "Subspace":
        """An isotropic random subspace: the span of ``k`` Gaussian vectors."""
        draw = torch.randn(d_model, k, generator=generator(seed, "random subspace", d_model, k))
        return cls.from_vectors(draw, hook)

    @property
    def d_model(self) -> int:
        """Width of the space."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Dimension of the subspace."""
        return self.basis.shape[1]

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """The one unit vector of a subspace of dimension 1.

        Raises:
            UndoProbeError: the dimension is not 1.
        """
        if self.k != 1:
            raise UndoProbeError(f"a subspace of dimension {self.k} has no single direction: use its basis")
        return self.basis[:, 0]

    def to(self, device: str | torch.device) -> "Subspace":
        """The same subspace on another device; this one stays where it is."""
        mean = None if self.mean is None else self.mean.to(device)
        return replace(self, basis=self.basis.to(device), mean=mean)

    def share(self, vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """Squared norm inside the subspace over squared norm, in [0, 1]; k / d_model if isotropic."""
        return linalg.projection_share(vectors, self.basis.to(vectors))

    def remove(
        self, vectors: Float[Tensor, "*rows d_model"], to_mean: bool = False
    ) -> Float[Tensor, "*rows d_model"]:
        """New vectors whose part in the subspace is zero, or that of ``mean``.

        Raises:
            UndoProbeError: ``to_mean`` without a mean.
        """
        # In half precision a projection would leave a visible rest behind, so it runs in float32.
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        basis = self.basis.to(wide)
        kept = linalg.project_out(wide, basis)
        if to_mean:
            if self.mean is None:
                raise UndoProbeError("this subspace has no mean: give one to from_vectors, or ablate to zero")
            kept = kept + linalg.project(self.mean.to(wide), basis)
        return kept.to(vectors.dtype)
