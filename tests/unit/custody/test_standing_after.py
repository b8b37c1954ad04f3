"""What was found long ago says nothing of today."""

from __future__ import annotations

import pytest

from vmkeep.custody.standing import LOOK_SECONDS, Standing, standing_after


@pytest.mark.parametrize("standing", list(Standing))
def test_statement_that_is_older_than_three_looks_is_unknown(standing: Standing) -> None:
    assert standing_after(standing, 3 * LOOK_SECONDS) is standing
    assert standing_after(standing, 3 * LOOK_SECONDS + 1) is Standing.UNKNOWN
