"""What was found long ago says nothing of today."""

from __future__ import annotations

import pytest

from vmkeep.custody.standing import LOOK_SECONDS, Standing, standing_after


@pytest.mark.parametrize("standing", list(Standing))
def test_statement_that_is_older_than_three_looks_is_unknown(standing: Standing) -> None:
    assert standing_after(standing, 3 * LOOK_SECONDS) is standing
    assert standing_after(standing, 3 * LOOK_SECONDS + 1) is Standing.UNKNOWN


@pytest.mark.parametrize("standing", list(Standing))
def test_statement_that_will_be_made_later_is_unknown(standing: Standing) -> None:
    """A clock was set back; two hosts' clocks that differ by less than a look say nothing of that."""
    assert standing_after(standing, -LOOK_SECONDS) is standing
    assert standing_after(standing, -LOOK_SECONDS - 1) is Standing.UNKNOWN
