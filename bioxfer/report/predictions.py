"""Reports on predictions: what was said of all records, from what is noted while they pass by.

What is kept does not grow with the number of records but for one number each: counts, a fair sample for the
maps, and the few rows that most deserve a second look.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bioxfer.cards import score_text
from bioxfer.cardtables import card_to_html, html_table
from bioxfer.embedding import EmbeddedRecord
from bioxfer.report.maps import draw_map, draw_track, into_space, plot_counts, plot_histogram
from bioxfer.report.page import Page
from bioxfer.residue_tasks import ResidueValues
from bioxfer.residues import ResidueHead
from bioxfer.rows import Batch, Head
from bioxfer.sequences import SequenceRecord

__all__ = ["PredictionReport"]

_SHARE_BINS = 20  # of scores and similarities, 0 to 1
_SHARES = [number / _SHARE_BINS for number in range(_SHARE_BINS + 1)]
_NUMBER_BINS = 24
_ROWS_NAMED = 25  # of each kind of row that deserves a second look
_TRACKS = 5  # proteins whose residues are drawn, for each head
_POINTS, _LEAST_POINTS = 4000, 150  # on all maps together, and on each
_MOST_ON_MAP = 1000
_SMALL = (4.8, 3.2)
_REMARKED = "ok, with a remark"


class _Sample(NamedTuple):
    """A protein on the map of a head."""

    id: str
    label: str
    text: str
    place: npt.NDArray[np.float16]


class _Track(NamedTuple):
    """A protein of which a head said something for each residue."""

    id: str
    sequence: str
    said: list[str]
    scores: npt.NDArray[Any]


class _Seen:
    """What one head said so far."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.labels: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.scores = np.zeros(_SHARE_BINS, dtype=np.int64)
        self.similarities = np.zeros(_SHARE_BINS, dtype=np.int64)
        self.numbers = array("d")
        self.sample: dict[int, _Sample] = {}  # by slot
        self.tracks: list[_Track] = []
        # the largest of the negated numbers are kept; the second number keeps the earlier of equals
        self.farthest: list[tuple[float, int, str, str]] = []
        self.least_sure: list[tuple[float, int, str, str]] = []

    def add(self, number: int, id_: str, cells: Sequence[object]) -> None:
        """Count the answer on one record."""
        label, score, nearest, flag = cells
        if label is None:
            return
        said = str(label)
        if isinstance(self.head, ResidueHead):
            if isinstance(self.head.task, ResidueValues):
                known = [float(text) for text in said.split() if text != "?"]
                self.numbers.append(sum(known) / len(known) if known else math.nan)
            else:
                self.labels.update(said)
        elif self.head.labels:
            self.labels.update(self.head.task.names(said))
        else:
            self.numbers.append(float(said))
        similarity = float(str(nearest).rpartition(" ")[2])
        self.similarities[_bin(similarity)] += 1
        self.flags[str(flag)] += 1
        _keep(self.farthest, (-similarity, -number, id_, said), when=flag == "far")
        if isinstance(score, float):
            self.scores[_bin(score)] += 1
            _keep(self.least_sure, (-score, -number, id_, said), when=True)


def _sort_of(e: EmbeddedRecord) -> str:
    """Say why a record deserves a second look; ``ok`` if it does not."""
    origin = e.record.origin
    # of each that was translated the message tells at least that it was
    usual = origin is not None and origin.start is not None and not origin.oddities
    return _REMARKED if e.status == "ok" and e.message and not usual else e.status


def _beside(card: Mapping[str, Any], metric: str) -> str:
    """Say how good the best simple method is."""
    gains = {
        name: each["head_minus_baseline"]["value"]
        for name, each in card.get("baselines", {}).items()
        if metric in each["metrics"]
    }
    if not gains:
        return "."
    best = min(gains, key=lambda name: (gains[name], name))
    return f"; the best simple method, {best}: {score_text(card['baselines'][best]['metrics'][metric])}."


def _place_of(record: SequenceRecord) -> str:
    """Say on which nucleotides a protein is written, on a line of its own."""
    origin = record.origin
    if origin is None or origin.start is None:
        return ""
    return f"\n{origin.source}, {origin.start} to {origin.end}, {origin.strand} strand"


def _bin(share: float) -> int:
    return min(max(int(share * _SHARE_BINS), 0), _SHARE_BINS - 1)


def _keep(heap: list[tuple[float, int, str, str]], row: tuple[float, int, str, str], *, when: bool) -> None:
    if when and len(heap) < _ROWS_NAMED:
        heapq.heappush(heap, row)
    elif when:
        heapq.heappushpop(heap, row)


class PredictionReport:
    """Notes what is predicted, batch by batch, and makes a page of it.

    Parameters
    ----------
    heads : sequence of TrainedHead or ResidueHead
        Those that predict.
    seed : int, optional
        Of the sample on the maps.
    """

    def __init__(self, heads: Sequence[Head], *, seed: int = 0) -> None:
        self.heads = list(heads)
        self._dice = np.random.default_rng(seed)
        self._slots = min(_MOST_ON_MAP, max(_LEAST_POINTS, _POINTS // max(1, len(self.heads))))
        self._seen = {head.name: _Seen(head) for head in self.heads}
        self.count = 0
        self.statuses: Counter[str] = Counter()
        self.sorts: Counter[str] = Counter()  # of the rows that deserve a second look
        self.translated = self.odd_genes = 0
        self._lengths = array("q")
        self._odd: dict[str, list[list[object]]] = {}

    def watch(self, batch: Batch) -> None:
        """Note what was said of some records."""
        slots: dict[int, int] = {}  # of those that are drawn, by their place in the batch
        for place, e in enumerate(batch.records):
            number = self.count + place
            slot = number if number < self._slots else int(self._dice.integers(number + 1))
            if slot < self._slots:
                slots = {p: s for p, s in slots.items() if s != slot} | {place: slot}
            self._lengths.append(e.length)
            self.statuses[e.status] += 1
            if (origin := e.record.origin) is not None and origin.start is not None:
                self.translated += 1
                self.odd_genes += bool(origin.oddities)
            if (sort := _sort_of(e)) != "ok":
                self.sorts[sort] += 1
                rows = self._odd.setdefault(sort, [])
                if len(rows) < _ROWS_NAMED:
                    rows.append([e.record.id, e.length, e.status, e.message])
        for head in self.heads:
            seen, cells = self._seen[head.name], batch.cells[head.name]
            for place, (e, row) in enumerate(zip(batch.records, cells, strict=True)):
                seen.add(self.count + place, e.record.id, row)
                if isinstance(head, ResidueHead) and e.residues is not None and len(seen.tracks) < _TRACKS:
                    seen.tracks.append(_Track(e.record.id, e.sequence, *head.answer(e.residues)))
            self._put_on_map(seen, batch, slots)
        self.count += len(batch.records)

    def _put_on_map(self, seen: _Seen, batch: Batch, slots: dict[int, int]) -> None:
        places, vectors = batch.features[seen.head.name]
        row_of = {place: row for row, place in enumerate(places)}
        chosen = [place for place in slots if place in row_of]
        for place in slots:
            seen.sample.pop(slots[place], None)
        if not chosen:
            return
        space = into_space(seen.head, vectors[[row_of[place] for place in chosen]]).astype(np.float16)
        for place, point in zip(chosen, space, strict=True):
            label, score, nearest, flag = batch.cells[seen.head.name][place]
            by_residue = isinstance(seen.head, ResidueHead)
            said = str(flag) if by_residue else str(label)
            sure = f" ({score:.3f})" if isinstance(score, float) else ""
            answer = "" if by_residue else f"{label}{sure}\n"
            record = batch.records[place].record
            text = f"{answer}nearest: {nearest}, {flag}{_place_of(record)}"
            seen.sample[slots[place]] = _Sample(record.id, said, text, point)

    def page(self, *, source: str) -> Page:
        """Make the page of all that was noted.

        Parameters
        ----------
        source : str
            Name of the input.
        """
        named = ", ".join(head.name for head in self.heads)
        page = Page(f"Predictions for {source}", f"{self.count} records; {named}")
        if not self.count:
            page.text("The input holds no sequence, so there is nothing to show.")
            return page
        lengths = np.array(self._lengths)
        page.tiles(
            {
                "records": self.count,
                **dict(sorted(self.statuses.items())),
                "residues, median": f"{np.median(lengths):g}",
                "residues, most": int(lengths.max()),
            }
        )
        page.links({"look": "rows to look at", **{f"head-{n}": h.name for n, h in enumerate(self.heads)}})
        self._add_rows(page)
        page.draw("lengths", partial(_draw_lengths, lengths), size=_SMALL)
        for number, head in enumerate(self.heads):
            self._add_head(page, self._seen[head.name], f"head-{number}")
        return page

    def _add_rows(self, page: Page) -> None:
        page.heading("Rows that deserve a second look", anchor="look")
        for sort in ("failed", "skipped", "truncated", "windowed", _REMARKED):
            rows = self._odd.get(sort, [])
            count = self.sorts[sort]
            shown = f"{count} {sort}" if len(rows) == count else f"{count} {sort}, the first {len(rows)}"
            columns = ["id", "length", "status", "message"]
            page.add(html_table(columns, rows, caption=shown, names=4, whole=("message",)))
        if not self.sorts:
            page.text("Every record was read whole, and nothing was odd.")
        if self.translated:
            odd = f"; {self.odd_genes} of them are odd" if self.odd_genes else ""
            page.text(
                f"Translated from nucleotides: {self.translated} of {self.count}{odd}. The table says where "
                "each is written, and what is odd about it."
            )
        far = {name: seen.flags["far"] for name, seen in self._seen.items() if seen.flags["far"]}
        if far:
            told = ", ".join(f"{count} by {name}" for name, count in far.items())
            page.text(f"Far from all that a head learnt from: {told}. They are named below, head by head.")

    def _add_head(self, page: Page, seen: _Seen, anchor: str) -> None:
        head = seen.head
        page.heading(head.name, anchor=anchor)
        metric = head.task.main_metric
        stated = head.card.get("metrics", {}).get(metric)
        held = head.card.get("split", {}).get("valid")
        page.text(
            f"{head.task.name}, {head.kind} head."
            + (f" Its card: {metric} {score_text(stated)} on {held} held-out proteins" if stated else "")
            + (_beside(head.card, metric) if stated else "")
        )
        if head.card:
            page.details(f"the card of {head.name}", card_to_html(head.card))
        answered = sum(seen.flags.values())
        if not answered:
            page.text("No record has an answer.")
            return
        if seen.labels:
            what = "residues" if isinstance(head, ResidueHead) else "proteins"
            page.draw(
                "counts",
                lambda ax: plot_counts(seen.labels, what=what, title=f"{head.name}: what was said", ax=ax),
                size=_SMALL,
            )
        if seen.numbers:
            page.draw("values", partial(_draw_numbers, seen), size=_SMALL)
        if seen.scores.any():
            page.draw("scores", partial(_draw_scores, seen), size=_SMALL)
        page.draw("similarity", partial(_draw_similarities, seen), size=_SMALL)
        points = [seen.sample[slot] for slot in sorted(seen.sample)]
        if points:
            page.draw("map", partial(self._draw_map, seen, points), size=(4.8, 4.6))
        for track in seen.tracks:
            page.draw("track", partial(_draw_track, head, track), size=(9.6, 2.0))
        for rows, most, title, name in (
            (seen.farthest, _ROWS_NAMED, "farthest from all that it learnt from", "similarity"),
            # of few, most are no worse than others
            (seen.least_sure, math.ceil(answered / 10), "least sure", "score"),
        ):
            worst = sorted(rows, reverse=True)[:most]
            table = [[id_, said, f"{-value:.3f}"] for value, _, id_, said in worst]
            page.add(html_table(["id", "said", name], table, names=2, caption=f"{head.name}: {title}"))

    def _draw_map(self, seen: _Seen, points: list[_Sample], ax: Any) -> None:
        draw_map(
            seen.head,
            np.array([point.place for point in points], dtype=np.float32),
            labels=[point.label for point in points],
            names=[point.id for point in points],
            texts=[point.text for point in points],
            of=sum(seen.flags.values()),
            most=self._slots,
            ax=ax,
        )


def _draw_lengths(lengths: npt.NDArray[np.int64], ax: Any) -> None:
    # Bars of equally many whole numbers, as others would look like a comb.
    low, high = int(lengths.min()), int(lengths.max())
    step = -(-(high - low + 1) // _NUMBER_BINS)
    counts, edges = np.histogram(lengths, bins=np.arange(low, high + step + 1, step))
    plot_histogram(counts.tolist(), edges.tolist(), x="residues", title="Lengths of the records", ax=ax)


def _draw_numbers(seen: _Seen, ax: Any) -> None:
    values = np.array(seen.numbers)
    counts, edges = np.histogram(values[np.isfinite(values)], bins=_NUMBER_BINS)
    by_residue = isinstance(seen.head, ResidueHead)
    x = "mean over the residues of a protein" if by_residue else "predicted"
    plot_histogram(counts.tolist(), edges.tolist(), x=x, title=f"{seen.head.name}: numbers", ax=ax)


def _draw_track(head: Head, track: _Track, ax: Any) -> None:
    if isinstance(head, ResidueHead):
        draw_track(head, track.said, track.scores, sequence=track.sequence, name=track.id, ax=ax)


def _draw_scores(seen: _Seen, ax: Any) -> None:
    x = "mean probability of the residues" if isinstance(seen.head, ResidueHead) else "calibrated probability"
    plot_histogram(seen.scores.tolist(), _SHARES, x=x, title=f"{seen.head.name}: scores", ax=ax)


def _draw_similarities(seen: _Seen, ax: Any) -> None:
    far, answered = seen.flags["far"], sum(seen.flags.values())
    plot_histogram(
        seen.similarities.tolist(),
        _SHARES,
        x="cosine to the nearest training protein",
        title=f"{seen.head.name}: {far} of {answered} far (left of the line)",
        mark=seen.head.index.far,
        ax=ax,
    )
