"""Which versions of another installation are no news, because it did not know that their content is an older one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vmkeep.custody.states import NOT_SAID, Because, KnownState, repeated_unawares, vouched_states, why_new


@dataclass(frozen=True)
class Version:
    generation: int
    sha256: str
    because: str = Because.CHANGED
    made_here: bool = True
    kind: str = "tpm"

    @property
    def id(self) -> str:
        return f"{self.kind} {self.generation}"


OURS = (Version(1, "a"), Version(2, "b"))


def test_older_content_that_another_one_took_for_a_new_one_is_no_news() -> None:
    assert repeated_unawares((*OURS, Version(3, "a", made_here=False))) == {"tpm 3"}
    assert repeated_unawares((*OURS, *(Version(number, "a", made_here=False) for number in (3, 4)))) == {
        "tpm 3",
        "tpm 4",
    }


@pytest.mark.parametrize(
    "theirs",
    [
        Version(3, "c", made_here=False),
        Version(3, "b", made_here=False),
        Version(3, "a", made_here=True),
        Version(3, "a", Because.PLACED, made_here=False),
        Version(3, "a", Because.RETURNED, made_here=False),
        Version(3, "a", NOT_SAID, made_here=False),
        Version(3, "a", made_here=False, kind="nvram"),
    ],
)
def test_what_is_new_what_was_meant_and_what_says_nothing_counts(theirs: Version) -> None:
    assert repeated_unawares((*OURS, theirs)) == set()


def test_what_follows_one_that_is_no_news_is_held_against_what_counts() -> None:
    theirs = Version(3, "a", made_here=False)
    assert repeated_unawares((*OURS, theirs, Version(4, "b", made_here=False))) == {"tpm 3"}
    assert repeated_unawares((*OURS, theirs, Version(4, "c"), Version(5, "b", made_here=False))) == {"tpm 3", "tpm 5"}


def known(sha256: str, *, again: str = NOT_SAID, vouched: bool = True) -> KnownState:
    return KnownState("tpm", "1" * 32, 1, sha256, 3, "", vouched, again=again)


def test_number_is_given_because_of_what_is_known_of_the_content() -> None:
    placed, returned = known("p", again=Because.PLACED), known("r", again=Because.RETURNED)
    versions = (known("n"), placed, returned, known("f", vouched=False))
    assert vouched_states(versions, "tpm") == versions[:1]
    assert why_new(versions, "tpm", "p") is Because.PLACED
    assert why_new(versions, "tpm", "r") is Because.RETURNED
    assert why_new(versions, "tpm", "n") is Because.RETURNED  # its version cannot be read any more
    for content in ("f", "x"):
        assert why_new(versions, "tpm", content) is Because.CHANGED
    assert why_new(versions, "nvram", "p") is Because.CHANGED
