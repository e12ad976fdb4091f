"""The attribution game: players, coalitions, estimators and shares. Pure mathematics over numpy."""
