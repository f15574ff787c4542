"""Rows that say nearly the same, found without comparing each with each.

Knows: MinHash (Broder 1997, doi:10.1109/SEQUEN.1997.666900) and banding. Does not know records or files.

A text is the set of its runs of five words (a Chinese or Japanese character is a word), and two texts are near
duplicates when their sets overlap by `threshold` (Jaccard: shared runs by all runs). A signature of `num_perm` minima
estimates that overlap: each minimum is equal in two texts with a probability of their overlap. Signatures are cut into
bands; only texts with an equal band are compared.
"""

from __future__ import annotations

import zlib
from array import array
from typing import TYPE_CHECKING, Any

from utils.overlap import words

if TYPE_CHECKING:
    import numpy

SHINGLE_WORDS = 5
BAND_RECALL = 0.95
"""How many of the pairs at the threshold share a band, at least."""
NONE = -1


class NearDuplicates:
    """Texts are added in order; of texts that are near, the first is kept.

    Memory: 4 bytes a text and permutation (512 at 128, and up to an eighth more while they grow), and 40 bytes a text
    while duplicates are looked for, beside what is needed for the texts that share a band with another.
    """

    def __init__(self, threshold: float = 0.75, num_perm: int = 128) -> None:
        """
        Args:
            threshold: the overlap from which two texts are near duplicates, above 0 and at most 1. 0.75 is FineWeb's
                (Penedo et al. 2024, arXiv:2406.17557); of 60 words, one may then differ.
            num_perm: minima of a signature. The estimate's standard error at an overlap of s is sqrt(s(1-s)/num_perm).

        Raises:
            ValueError: a threshold or a number out of its range.
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold of near duplicates is {threshold}; it must be above 0 and at most 1")
        if num_perm < 1:
            raise ValueError(f"a signature of {num_perm} minima; it must be 1 or more")
        import datasketch

        self.threshold, self.num_perm = threshold, num_perm
        self.rows_a_band = band_rows(threshold, num_perm)
        self._minhash: Any = datasketch.MinHash(num_perm=num_perm, seed=1, scheme="affine32", hashfunc=zlib.crc32)
        self._signatures = array("I")  # it grows in place, which a numpy array cannot

    def __len__(self) -> int:
        return len(self._signatures) // self.num_perm

    def add(self, text: str) -> None:
        """Takes the next text. One that is shorter than five words is only near to one with the same words."""
        self._minhash.clear()
        self._minhash.update_batch([shingle.encode(errors="replace") for shingle in shingles(text)])
        self._signatures.frombytes(self._minhash.hashvalues.tobytes())

    def duplicates(self) -> numpy.ndarray[Any, Any]:
        """For each text the number (from 0) of the earlier one that it repeats, or -1; shape (texts,), int64.

        What it repeats is itself kept, and the first such: so every text that is dropped has a near one that stays.
        """
        import numpy

        signatures = numpy.frombuffer(self._signatures, dtype=numpy.uint32).reshape(-1, self.num_perm)
        repeats = numpy.full(len(signatures), NONE, dtype=numpy.int64)
        needed = self.threshold * self.num_perm - 1e-9  # 0.8 * 5 is a little more than 4
        kept: dict[int, list[int]] = {}
        for number, buckets in self._shared_bands(signatures):
            near = sorted({other for bucket in buckets for other in kept.get(bucket, ())})
            if near:
                equal = (signatures[near] == signatures[number]).sum(axis=1)
                found = numpy.flatnonzero(equal >= needed)
                if len(found):
                    repeats[number] = near[found[0]]
                    continue
            for bucket in buckets:
                kept.setdefault(bucket, []).append(number)
        return repeats

    def _shared_bands(self, signatures: numpy.ndarray[Any, Any]) -> list[tuple[int, list[int]]]:
        """In order, the texts of which a band is equal to another's, and the buckets (equal bands) they are in."""
        import numpy

        if len(signatures) < 2:
            return []
        members: dict[int, list[int]] = {}
        first_bucket = 0
        for start in range(0, self.num_perm - self.rows_a_band + 1, self.rows_a_band):
            keys = numpy.zeros(len(signatures), dtype=numpy.uint64)
            for column in range(start, start + self.rows_a_band):
                # A polynomial modulo 2^64 with the golden ratio's multiplier; who collides is compared in full.
                keys = keys * numpy.uint64(0x9E3779B97F4A7C15) + signatures[:, column]
            order = numpy.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            shared = numpy.append(same, False) | numpy.insert(same, 0, False)
            buckets = first_bucket + numpy.cumsum(~numpy.insert(same, 0, False))
            for number, bucket in zip(order[shared].tolist(), buckets[shared].tolist(), strict=True):
                members.setdefault(number, []).append(bucket)
            first_bucket = int(buckets[-1]) + 1
        return sorted(members.items())


def shingles(text: str) -> set[str]:
    """The runs of five words of a text, folded as `utils.overlap.words` does; all of it where there are fewer."""
    found = words(text)
    if len(found) < SHINGLE_WORDS:
        # Punctuation and emoji are all that some texts have.
        return {" ".join(found) or text.strip()}
    return {" ".join(found[start : start + SHINGLE_WORDS]) for start in range(len(found) - SHINGLE_WORDS + 1)}


def band_rows(threshold: float, num_perm: int) -> int:
    """The longest band with which a pair at the threshold shares one of them with a probability of 95 %; at least 1.

    >>> band_rows(0.75, 128), band_rows(0.8, 128)
    (6, 7)
    """

    def recall(length: int) -> float:
        return 1 - (1 - threshold**length) ** (num_perm // length)

    return max([length for length in range(1, num_perm + 1) if recall(length) >= BAND_RECALL], default=1)
