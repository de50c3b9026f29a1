"""The last few answers: the same ones, no more than so many, none in copies."""

import copy
import pickle

from sdegen.core.cache import Recent


def test_recent_answers_are_given_again_and_the_oldest_forgotten():
    recent, made = Recent(2), []

    def asked(key):
        return recent.of(key, lambda: made.append(key) or [key])

    first = asked("a")
    assert asked("b") == ["b"] and asked("a") is first and made == ["a", "b"]
    asked("c")
    assert asked("a") is not first and made == ["a", "b", "c", "a"]


def test_copies_of_recent_answers_begin_anew():
    recent = Recent(2)
    first = recent.of(1, lambda: [1])
    for other in (copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        assert other.of(1, lambda: [1]) is not first
