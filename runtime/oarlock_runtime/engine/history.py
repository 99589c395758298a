"""The distinct tokens of one sequence and how often each was generated: what penalties are computed from."""

import numpy as np
import numpy.typing as npt


class History:
    """Kept only for requests with a penalty; grows by one token a step."""

    def __init__(self, prompt: npt.NDArray[np.int32]) -> None:
        distinct = np.unique(prompt).astype(np.int32)
        self._size = len(distinct)
        self._ids = np.empty(self._size + 64, np.int32)
        self._ids[: self._size] = distinct
        self._counts = np.zeros(self._size + 64, np.int32)
        self._place = {token: place for place, token in enumerate(distinct.tolist())}

    def append(self, token: int) -> None:
        """Counts a generated token."""
        place = self._place.setdefault(token, self._size)
        if place == self._size:
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """A view of the distinct tokens, in no order."""
        return self._ids[: self._size]

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """A view of how often each of `ids` was generated; 0 = in the prompt only."""
        return self._counts[: self._size]
