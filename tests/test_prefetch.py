"""Items come in order, one is made ahead in the background, and nothing outlives the generator."""

import contextlib
import itertools
import threading
from collections.abc import Iterator

import pytest

from gptjax.data.dataset import prefetch

TIMEOUT = 30.0


def n_threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_items_are_those_of_map_and_the_thread_ends(n: int) -> None:
    assert list(prefetch(str, range(n))) == list(map(str, range(n)))
    assert n_threads() == 0


def test_the_next_item_is_made_while_the_caller_uses_the_current_one() -> None:
    started = [threading.Event() for _ in range(3)]
    makers = set()

    def make(i: int) -> int:
        makers.add(threading.current_thread())
        started[i].set()
        return i

    for i in prefetch(make, range(3)):
        # The caller does not ask for more before the next one has started.
        assert started[min(i + 1, 2)].wait(TIMEOUT)
    assert len(makers) == 1
    assert threading.current_thread() not in makers


def test_keys_are_taken_one_ahead_in_the_callers_thread_and_see_its_state() -> None:
    size, taken, takers = 1, [], set()

    def keys() -> Iterator[int]:
        while True:
            taken.append(size)
            takers.add(threading.current_thread())
            yield size

    with contextlib.closing(prefetch(lambda key: key, keys())) as items:
        for n in itertools.count(1):
            # The key of the next item was decided before this one was handed out.
            assert next(items) == max(1, n - 1)
            assert len(taken) == n + 1
            size = n + 1
            if n == 5:
                break
    assert takers == {threading.current_thread()}
    assert taken == [1, 1, 2, 3, 4, 5]


def test_an_exception_takes_the_place_of_its_item() -> None:
    items = prefetch(lambda x: 1 // x, [1, 1, 0, 1])
    assert [next(items), next(items)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert n_threads() == 0


def test_closing_ends_the_thread_and_takes_no_further_key() -> None:
    made = []
    with contextlib.closing(prefetch(made.append, itertools.count())) as items:
        next(items)
        assert n_threads() == 1
    assert n_threads() == 0
    assert made == [0, 1]
