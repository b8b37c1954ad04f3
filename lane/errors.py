"""What the lane says when it cannot go on."""


class LaneError(Exception):
    """Something is missing or in the way; the text says what, and what to do."""
