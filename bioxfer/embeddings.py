"""Embeddings as a result: ids, what became of each record, and an array of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from bioxfer.engine import Vector
from bioxfer.pooling import parse_pool
from bioxfer.quoting import to_html

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Embeddings", "Status"]

Status = Literal["ok", "windowed", "truncated", "skipped", "failed"]

_SHOWN = 5  # rows of a notebook's preview


@dataclass(slots=True)
class Embeddings:
    """One row for each input record, in input order.

    Attributes
    ----------
    ids : list of str
        Verbatim, ``N`` of them.
    lengths : list of int
        Residues after cleaning; -1 where a file that was read does not tell.
    statuses : list of str
        ``ok``, ``windowed``, ``truncated``, ``skipped`` or ``failed``.
    messages : list of str
        What was changed or went wrong; empty if nothing.
    vectors : ndarray
        ``(N, D)`` float32, ``D`` being the backbone's width times the number
        of joined poolings; rows that were skipped or failed hold NaN.
    model, layer, pool, fingerprint
        What made the vectors; of a file that does not tell, ``unknown``, -1, ``mean`` and empty.
    residues : list of ndarray, or None
        ``(L, D)`` float32 for each record (None where skipped or failed), if asked for.
    """

    ids: list[str]
    lengths: list[int]
    statuses: list[Status]
    messages: list[str]
    vectors: Vector
    model: str
    layer: int
    pool: str
    fingerprint: str
    residues: list[Vector | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Embeddings {self._title()}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{to_html(id_)}</td><td>{length}</td><td>{status}</td><td>{to_html(message)}</td></tr>"
            for id_, length, status, message in islice(
                zip(self.ids, self.lengths, self.statuses, self.messages, strict=True), _SHOWN
            )
        )
        more = f"<p>and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return (
            f"<p><b>Embeddings</b> {to_html(self._title())}</p><table><thead><tr><th>id</th>"
            f"<th>length</th><th>status</th><th>message</th></tr></thead><tbody>{rows}</tbody></table>{more}"
        )

    def _title(self) -> str:
        count, width = self.vectors.shape
        layer = "" if self.layer < 0 else f"layer {self.layer}, "
        odd = [(status, self.statuses.count(status)) for status in sorted(set(self.statuses) - {"ok"})]
        told = "".join(f", {many} {status}" for status, many in odd)
        return f"{count} × {width}, {self.model}, {layer}{self.pool}{told}"

    def to_pandas(self) -> pd.DataFrame:
        """Make a table of ``id, length, status, message`` and one column per dimension.

        Returns
        -------
        pandas.DataFrame
            ``N`` rows; the vectors' columns are named by pooling and dimension,
            ``mean_0, mean_1, ...``.
        """
        import pandas as pd

        pools = parse_pool(self.pool)
        width = self.vectors.shape[1] // len(pools)
        rows = {
            "id": self.ids,
            "length": self.lengths,
            "status": self.statuses,
            "message": self.messages,
        }
        names = [f"{pool}_{number}" for pool in pools for number in range(width)]
        return pd.concat([pd.DataFrame(rows), pd.DataFrame(self.vectors, columns=names)], axis=1)
