"""The one error of this package."""


class AttributionError(ValueError):
    """What was given cannot be attributed or apportioned; the message says what to change."""
