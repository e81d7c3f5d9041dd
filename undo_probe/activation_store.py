"""Activations on disk: read back by hook point and slice, memory-mapped, every tensor checked against its hash.

A store is a folder: ``store.json`` (what was harvested, and how it is cut), ``tokens.safetensors`` (token ids and
which positions were kept) and shards of at most 256 MB, each a safetensors file with its hashes in a JSON file
beside it. A shard holds some rows at all hook points; an item is one kept position of one row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_file, digest, read_json, write_json
from undo_probe.models import load_tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_SHARD_BYTES = 256 * 10**6
RECORD, TOKENS, HASH = "store.json", "tokens.safetensors", "xxh3_128"
_ADVICE = "Delete that file and run the same harvest again: only this shard is made anew."


@dataclass(frozen=True)
class Layout:
    """How a store is cut: ``shard_rows`` rows a shard, harvested in batches of ``batch_rows``.

    A harvest that goes on keeps both, so that every row meets the same rows in its batch and comes out bit-equal.
    """

    shapes: dict[str, list[int]]
    dtype: str
    rows: int
    items: int
    shard_rows: int
    batch_rows: int

    @property
    def item_bytes(self) -> int:
        """Bytes of one item at all hook points."""
        return sum(math.prod(shape) for shape in self.shapes.values()) * DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all activations."""
        return self.items * self.item_bytes

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the first after it."""
        return shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows)


def shard_path(folder: Path, shard: int) -> Path:
    """Where the tensors of a shard lie; its hashes are in the ``.json`` beside it."""
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(folder: Path, key: str, shard: int, tensors: Mapping[str, Float[Tensor, "item ..."]]) -> None:
    """Writes a shard, then its hashes: a shard without them does not count."""
    from safetensors.torch import save_file

    path = shard_path(folder, shard)
    with atomic_file(path) as temporary:
        save_file(dict(tensors), temporary)
    hashes = {name: shard_hash(tensor) for name, tensor in tensors.items()}
    body = {"key": key, "shard": shard, HASH: hashes}
    write_json(path.with_suffix(".json"), {**body, "digest": digest(body)})


def shard_hash(tensor: Float[Tensor, "item ..."]) -> str:
    """XXH3 of a tensor, 128 bits: it notices damage, not forgery, at the speed of memory.

    Activations can be harvested again, and what names them (model, tokens, points) is hashed with sha256, which takes
    longer here than writing does.
    """
    import xxhash

    found = xxhash.xxh3_128(f"{tuple(tensor.shape)}|{tensor.dtype}|".encode())
    found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_shard_record(folder: Path, key: str, shard: int) -> dict[str, str]:
    """The hash of each hook point's tensor in a shard.

    Raises:
        UndoProbeError: the record or the shard is missing, or the record is damaged or of another harvest.
    """
    path = shard_path(folder, shard)
    body = read_json(path.with_suffix(".json"))
    claimed = body.pop("digest", None) if isinstance(body, dict) else None
    if digest(body) != claimed or (body["key"], body["shard"], HASH in body) != (key, shard, True):
        raise UndoProbeError(
            f"{path.with_suffix('.json')} is damaged or belongs to another harvest. {_ADVICE}"
        )
    if not path.is_file():
        raise UndoProbeError(f"{path} is missing: run the same harvest again; only this shard is made anew")
    return body[HASH]


class ActivationStore:
    """Harvested activations, opened for reading; :func:`undo_probe.harvest` makes the folder.

    A tensor is checked against its hash when it is first touched, and memory-mapped: what is not asked for is not
    held. Where reading a little of a large store must be quick, ``check=False`` leaves that to :meth:`verify`.
    """

    def __init__(self, folder: str | Path, check: bool = True) -> None:
        """Opens a complete store.

        Raises:
            UndoProbeError: there is none, it is not complete, or a record is damaged.
        """
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self.what: dict[str, Any] = self.record["what"]
        self.key: str = self.record["key"]
        self.layout = Layout(**self.record["layout"])
        self.points: tuple[str, ...] = tuple(self.layout.shapes)
        self.check = check
        self._checked: set[tuple[int, str]] = set()
        missing = missing_shards(self.folder, self.key, self.layout)
        if missing:
            raise UndoProbeError(
                f"{self.folder} is not complete: {len(missing)} of {self.layout.shards} shards are missing or have a "
                f"damaged record, first {shard_path(self.folder, missing[0]).name}; run the same harvest again: it "
                "makes only these"
            )
        self._hashes = [
            read_shard_record(self.folder, self.key, shard) for shard in range(self.layout.shards)
        ]

    @cached_property
    def _rows(self) -> dict[str, Tensor]:
        return load_tensors(self.folder / TOKENS, self.record["tokens"])

    @property
    def tokens(self) -> Int[Tensor, "row pos"]:
        """The token ids that the model read."""
        return self._rows["tokens"]

    @property
    def kept(self) -> Bool[Tensor, "row pos"]:
        """True where the activation was kept."""
        return self._rows["kept"]

    @cached_property
    def rows(self) -> Int[np.ndarray, " item"]:
        """The row that each item is of, ascending."""
        return self.kept.nonzero()[:, 0].numpy()

    @cached_property
    def positions(self) -> Int[np.ndarray, " item"]:
        """The position in its row that each item is of."""
        return self.kept.nonzero()[:, 1].numpy()

    @cached_property
    def _starts(self) -> Int[np.ndarray, " edge"]:
        """The first item of each shard, and one behind the last."""
        edges = [0, *(self.layout.rows_of(shard)[1] for shard in range(self.layout.shards))]
        return np.searchsorted(self.rows, edges)

    @property
    def dtype(self) -> torch.dtype:
        """What the activations are kept in."""
        return DTYPES[self.layout.dtype]

    def __len__(self) -> int:
        """Number of items: kept positions of all rows."""
        return self.layout.items

    def read(
        self,
        point: str | int,
        rows: slice | Sequence[int] | int | None = None,
        position: int | None = None,
    ) -> Float[Tensor, "item ..."]:
        """Activations at a hook point, one line an item (see ``rows`` and ``positions`` for whose).

        What lies together in one shard is not copied before it is used.

        Args:
            point: hook name, or the number of a block at which one point was harvested.
            rows: which rows, by slice or number, in this order; None for all.
            position: only this position of each row, negative from the end; None for all that were kept.

        Raises:
            UndoProbeError: there is no such point, row or position, or a shard is damaged.
        """
        name = self._point(point)
        items = self._items(rows, position)
        shards = np.searchsorted(self._starts, items, side="right") - 1
        used = np.unique(shards)
        if len(used) == 1 and bool((np.diff(items) == 1).all()):
            first = int(items[0] - self._starts[used[0]])
            return self._mapped(int(used[0]), name)[first : first + len(items)]
        out = torch.empty(len(items), *self.layout.shapes[name], dtype=self.dtype)
        for shard in used:
            there = shards == shard
            inside = torch.from_numpy(items[there] - self._starts[shard])
            out[torch.from_numpy(there)] = self._mapped(int(shard), name)[inside]
        return out

    def parts(self, point: str | int) -> Iterator[Float[Tensor, "item ..."]]:
        """All items at a hook point, shard by shard, so that memory does not grow with the store."""
        name = self._point(point)
        for shard in range(self.layout.shards):
            yield self._mapped(shard, name)

    def paired(
        self, other: "ActivationStore", point: str | int
    ) -> Iterator[tuple[Float[Tensor, "item ..."], Float[Tensor, "item ..."]]]:
        """The same items in two stores, shard by shard of this one.

        Raises:
            UndoProbeError: the stores hold other tokens or positions, or the other lacks the point.
        """
        self.check_same_tokens(other)
        name = self._point(point)
        for shard in range(self.layout.shards):
            first, last = self.layout.rows_of(shard)
            if self._starts[shard] < self._starts[shard + 1]:
                yield self._mapped(shard, name), other.read(name, slice(first, last))

    def check_same_tokens(self, other: "ActivationStore") -> None:
        """Refuses a comparison of states that different tokens gave.

        Raises:
            UndoProbeError: saying where they differ.
        """
        if self.what["tokens"] == other.what["tokens"] and self.what["kept"] == other.what["kept"]:
            return
        raise UndoProbeError(
            f"{self.folder} and {other.folder} cannot be compared: {_difference(self, other)}. Harvest both models on "
            "the same tokens and positions"
        )

    def verify(self) -> None:
        """Reads everything and checks it.

        Raises:
            UndoProbeError: naming the damaged file.
        """
        _ = self._rows
        for shard in range(self.layout.shards):
            for name in self.points:
                self._open(shard, name, check=True)

    def _point(self, point: str | int) -> str:
        fits = [
            name
            for name in self.points
            if name == point or (isinstance(point, int) and name.startswith(f"blocks.{point}."))
        ]
        if len(fits) != 1:
            many = "several points of" if fits else "nothing at"
            raise UndoProbeError(f"{self.folder} holds {many} {point!r}; it has: {', '.join(self.points)}")
        return fits[0]

    def _items(
        self, rows: slice | Sequence[int] | int | None, position: int | None
    ) -> Int[np.ndarray, " item"]:
        count, n_pos = self.kept.shape
        if not _fits(rows, count):
            raise UndoProbeError(f"rows {rows} do not fit a store of {count} rows (0 to {count - 1})")
        chosen: np.ndarray = np.atleast_1d(np.arange(count)[slice(None) if rows is None else rows])
        edges = np.searchsorted(self.rows, np.arange(count + 1))
        spans = list(zip(edges[chosen].tolist(), edges[chosen + 1].tolist(), strict=True))
        if spans and bool((np.diff(chosen) == 1).all()):
            spans = [(spans[0][0], spans[-1][1])]
        items = np.concatenate([np.arange(0), *(np.arange(first, last) for first, last in spans)])
        if position is not None:
            wanted = position + n_pos if position < 0 else position
            items = items[self.positions[items] == wanted]
        if not len(items):
            raise UndoProbeError(
                f"{self.folder} kept nothing at position {position} of the rows asked for; it kept the positions "
                f"{sorted(set(self.positions.tolist()))}"
            )
        return items

    def _mapped(self, shard: int, name: str) -> Float[Tensor, "item ..."]:
        return self._open(shard, name, check=self.check and (shard, name) not in self._checked)

    def _open(self, shard: int, name: str, check: bool) -> Float[Tensor, "item ..."]:
        from safetensors import SafetensorError, safe_open

        path = shard_path(self.folder, shard)
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise UndoProbeError(f"{path} cannot be read as safetensors ({error}). {_ADVICE}") from error
        if check and shard_hash(tensor) != self._hashes[shard][name]:
            raise UndoProbeError(f"{path} is damaged: {name} does not fit its hash. {_ADVICE}")
        self._checked.add((shard, name))
        return tensor

    def _repr_html_(self) -> str:
        import pandas as pd

        lines = {"folder": self.folder, **summary(self.what, self.layout)}
        return pd.Series(lines).to_frame().to_html(header=False)

    def __repr__(self) -> str:
        lines = summary(self.what, self.layout)
        return f"ActivationStore({str(self.folder)!r}: {lines['hook points']}; {lines['items']}; {lines['size']})"


def summary(what: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """What a store holds, in words for people."""
    points = what["points"]
    named = points[0] if len(points) == 1 else f"{len(points)} from {points[0]} to {points[-1]}"
    return {
        "hook points": named,
        "items": f"{layout.items:,} of {layout.rows:,} rows",
        "size": f"{layout.nbytes / 10**6:,.1f} MB as {layout.dtype}, {layout.shards} shard{'s' * (layout.shards > 1)}",
        "model": what["model"][:12] + (f", {what['variant']}" if what["variant"] else ""),
        "tokens": what["tokens"][:12],
    }


def read_record(folder: Path) -> dict[str, Any]:
    """What ``store.json`` says.

    Raises:
        UndoProbeError: there is none, or it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise UndoProbeError(
            f"{folder} holds no activations (there is no {RECORD}): give the folder that up.harvest wrote"
        )
    body = read_json(path)
    claimed = body.pop("digest", None) if isinstance(body, dict) else None
    if claimed is None or digest(body) != claimed or digest(body["what"]) != body["key"]:
        raise UndoProbeError(f"{path} is damaged. Delete the folder and harvest again.")
    return body


def missing_shards(folder: Path, key: str, layout: Layout) -> list[int]:
    """Numbers of the shards that are not there or have no valid record."""
    missing = []
    for shard in range(layout.shards):
        try:
            read_shard_record(folder, key, shard)
        except UndoProbeError:
            missing.append(shard)
    return missing


def _fits(rows: slice | Sequence[int] | int | None, count: int) -> bool:
    if rows is None or isinstance(rows, slice):
        return True
    return all(-count <= row < count for row in np.atleast_1d(rows))


def _difference(one: ActivationStore, other: ActivationStore) -> str:
    if one.tokens.shape != other.tokens.shape:
        a, b = (f"{rows} rows of {n_pos} tokens" for rows, n_pos in (one.tokens.shape, other.tokens.shape))
        return f"they hold different tokens: {a} against {b}"
    unlike = (one.tokens != other.tokens).nonzero()
    if len(unlike):
        row, place = unlike[0].tolist()
        a, b = (int(store.tokens[row, place]) for store in (one, other))
        rows = len(unlike[:, 0].unique())
        return (
            f"{rows} of {len(one.tokens)} rows hold different tokens; row {row} has {a} at position {place} in the "
            f"first and {b} in the second"
        )
    row = int((one.kept != other.kept).nonzero()[0, 0])
    a, b = (store.kept[row].nonzero()[:, 0].tolist() for store in (one, other))
    return f"different positions were kept of the same tokens; of row {row} {a} in the first and {b} in the second"
