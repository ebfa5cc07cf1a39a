"""Vocabularies of models in Hugging Face's layout: which token is which residue.

A tokenizer can do with a sequence what it likes: join letters, split them, or drop what it does not know.
None is run here. The vocabulary is read from the tokenizer's file (``tokenizer.json``, SentencePiece's
``spiece.model`` or ``vocab.txt``), every amino acid must have a token of its own, and a sequence becomes one
token for each of its residues.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import SequenceError, WeightsError

__all__ = ["ADDED_FILES", "TOKENIZER_FILES", "ResidueTokens", "find_residues", "read_vocabulary"]

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.txt")
"""Files that hold a vocabulary, in the order in which they are looked for."""

ADDED_FILES = ("tokenizer_config.json", "added_tokens.json")
"""Files that may add tokens to those of all but the first."""

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
RARE = "UZOB"
WORD_START = "▁"  # of a word's first piece, in SentencePiece
_LARGEST = 64 << 20  # bytes; a protein model's vocabulary has some kilobytes
_MOST = 1 << 20  # tokens
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class ResidueTokens:
    """Tokens of residues, and those that stand before and after them.

    Attributes
    ----------
    of_byte : ndarray
        Token of each ASCII letter, ``(256,)`` int64; -1 where there is none.
    before, after : tuple of int
        Tokens that frame a sequence.
    as_x : str
        Letters that are read as ``X``.
    """

    of_byte: npt.NDArray[np.int64]
    before: tuple[int, ...]
    after: tuple[int, ...]
    as_x: str

    def tokenize(self, sequence: str) -> npt.NDArray[np.int64]:
        """Give the framed tokens of a sequence, ``(before + L + after,)``.

        Raises
        ------
        SequenceError
            If it holds what is no residue.
        """
        # One byte for each character; what is not ASCII becomes "?", which is no residue.
        tokens = self.of_byte[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
        foreign = np.flatnonzero(tokens == _NO_TOKEN)
        if len(foreign):
            place = int(foreign[0])
            raise SequenceError(
                f"{sequence[place]!r} at {place + 1} is no residue of this model's vocabulary; "
                f"clean the sequence first, X stands for anything"
            )
        return np.concatenate((self.before, tokens, self.after)).astype(np.int64)

    def described(self) -> dict[str, object]:
        """Give all that changes a result, as JSON values."""
        letters = {chr(byte): int(token) for byte, token in enumerate(self.of_byte) if token != _NO_TOKEN}
        return {"tokens": letters, "before": list(self.before), "after": list(self.after)}


def find_residues(
    vocabulary: Mapping[str, int],
    *,
    size: int,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    rare_as_x: bool = False,
    place: str,
) -> ResidueTokens:
    """Find the token of every residue.

    Parameters
    ----------
    vocabulary : mapping of str to int
        What `read_vocabulary` gave.
    size : int
        Rows of the model's embedding.
    before, after : tuple of str, optional
        Tokens that frame a sequence.
    rare_as_x : bool, optional
        Read ``U Z O B`` as ``X`` whether there are tokens for them or not, as the
        authors of ProtT5 and ProstT5 do; otherwise only those without one.
    place : str
        The model, for messages.

    Raises
    ------
    WeightsError
        If an amino acid or a framing token is missing, two letters share one, or one
        is beyond the embedding.
    """
    # A vocabulary of words writes a residue with the mark that a word begins.
    marked, bare = (sum(start + letter in vocabulary for letter in STANDARD) for start in (WORD_START, ""))
    mark = WORD_START if marked >= max(bare, 1) else ""
    written = {letter: mark + letter for letter in (*STANDARD, "X", *RARE)}
    if missing := [letter for letter in (*STANDARD, "X") if written[letter] not in vocabulary]:
        raise WeightsError(
            f"{place}: its vocabulary has no token of its own for {', '.join(missing)}; "
            "it is no model of proteins that can be read here"
        )
    as_x = "".join(letter for letter in RARE if rare_as_x or written[letter] not in vocabulary)
    ids = {letter: vocabulary[written["X" if letter in as_x else letter]] for letter in written}
    if unframed := [token for token in (*before, *after) if token not in vocabulary]:
        raise WeightsError(f"{place}: its vocabulary has no {unframed[0]}; its tokenizer is another one's")
    frame = [tuple(vocabulary[token] for token in side) for side in (before, after)]
    own = [ids[letter] for letter in written if letter not in as_x]
    used = [*own, *frame[0], *frame[1]]
    if len(set(used)) < len(used):
        raise WeightsError(f"{place}: its vocabulary gives one token to several residues; it is damaged")
    if not all(0 <= token < size for token in used):
        raise WeightsError(
            f"{place}: its vocabulary reaches token {max(used)} and its embedding has {size}; "
            "tokenizer and weights are of two models"
        )
    table = np.full(256, _NO_TOKEN, dtype=np.int64)
    for letter, token in ids.items():
        table[ord(letter)] = token
    return ResidueTokens(table, frame[0], frame[1], as_x)


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Read the vocabulary of a model's folder, tokens and their numbers.

    Parameters
    ----------
    folder : Path
        Holds one of `TOKENIZER_FILES`, and perhaps some of `ADDED_FILES`.

    Raises
    ------
    WeightsError
        If there is none, or it is damaged.
    """
    readers = {"tokenizer.json": _read_json, "spiece.model": _read_pieces, "vocab.txt": _read_lines}
    path = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(
            f"{folder}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}); fetch it from where the weights "
            "are from"
        )
    try:
        found = readers[path.name](_read_file(path))
        if path.name == "tokenizer.json":
            return found
        for name, reader in _ADDED.items():
            if (path := folder / name).is_file():
                found |= reader(_read_file(path))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(
            f"{path}: no vocabulary can be read from it ({error or type(error).__name__}); fetch it again"
        ) from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    return data


def _numbered(tokens: Any) -> dict[str, int]:
    found = {str(token): number for token, number in tokens.items()}
    if not all(type(number) is int and 0 <= number < _MOST for number in found.values()):
        raise ValueError("its tokens are not numbered")
    return found


def _read_json(data: bytes) -> dict[str, int]:
    """Read a ``tokenizer.json``: a table of tokens, or a list of pieces with their scores."""
    read = json.loads(data)
    vocabulary = read["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {str(piece[0]): number for number, piece in enumerate(vocabulary)}
    added = {str(token["content"]): token["id"] for token in read.get("added_tokens") or []}
    return _numbered(vocabulary) | _numbered(added)


def _read_lines(data: bytes) -> dict[str, int]:
    return {token: number for number, token in enumerate(data.decode().split())}


def _read_added(data: bytes) -> dict[str, int]:
    return _numbered(json.loads(data))


def _read_settings(data: bytes) -> dict[str, int]:
    """Read the tokens that a ``tokenizer_config.json`` adds."""
    added = json.loads(data).get("added_tokens_decoder") or {}
    return _numbered({token["content"]: int(number) for number, token in added.items()})


_ADDED = dict(zip(ADDED_FILES, (_read_settings, _read_added), strict=True))


def _read_pieces(data: bytes) -> dict[str, int]:
    """Read a SentencePiece model: field 1 of the message is a piece, and field 1 of that its text."""
    pieces = [piece for field, piece in _fields(data) if field == 1]
    texts = [next((text for field, text in _fields(piece) if field == 1), b"") for piece in pieces]
    if not all(texts) or not texts:
        raise ValueError("it is no SentencePiece model")
    return {text.decode(): number for number, text in enumerate(texts)}


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give number and bytes of each field of a protocol buffer that is a text or a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            _, place = _varint(data, place)
            continue
        if kind not in (1, 2, 5):
            raise ValueError("it is no SentencePiece model")
        if kind == 2:
            size, place = _varint(data, place)
        else:
            size = 8 if kind == 1 else 4
        if place + size > len(data):
            raise ValueError("it is cut off")
        if kind == 2:
            yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("it is cut off")
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
