"""The attribution game: players, coalitions, estimators and shares. Pure mathematics over numpy."""

from attribution.errors import AttributionError
from attribution.shares import apportion, shares_ppm

__all__ = ["AttributionError", "apportion", "shares_ppm"]
