"""Stop strings across any cut of the text: nothing of them is let out, nothing before them is lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from oarlock_runtime.server.http.stops import StopMatcher

TEXT = st.text(alphabet="abé", max_size=30)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3)


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_any_cut_gives_the_text_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.stopped:
            break
    else:
        out += matcher.flush()
    found = [(text.find(stop) + len(stop), stop) for stop in stops if stop in text]
    if not found:
        assert out == text and not matcher.stopped
    else:
        assert matcher.stopped
        assert not any(stop in out for stop in stops)
        assert text.startswith(out) and any(text.startswith(out + stop) for stop in stops)


def test_text_is_withheld_only_while_it_may_become_a_stop() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.push("a#") == "a"
    assert matcher.push("b") == "#b"
    assert matcher.push("##") == ""
    assert matcher.push("#") == ""
    assert matcher.stopped
