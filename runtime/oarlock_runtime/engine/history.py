"""The distinct tokens of one sequence and how often each was generated: what penalties are computed from."""

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]


class History:
    """Kept only for requests with a penalty; grows by one token a step. `prompt`: tokens that count as seen."""

    def __init__(self, prompt: Int32s) -> None:
        distinct = np.unique(prompt)
        self._columns = np.zeros((2, len(distinct) + 64), np.int32)  # ids, counts
        self._columns[0, : len(distinct)] = distinct
        self._place = {token: place for place, token in enumerate(distinct.tolist())}

    def append(self, token: int) -> None:
        """Counts a generated token."""
        place = self._place.get(token)
        if place is not None:
            self._columns[1, place] += 1
            return
        place = self._place[token] = len(self._place)
        if place == self._columns.shape[1]:
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)), axis=1)
        self._columns[:, place] = token, 1

    @property
    def columns(self) -> Int32s:
        """A view, [2, distinct tokens]: ids in no order, and how often each was generated (0 = in the prompt only)."""
        return self._columns[:, : len(self._place)]
