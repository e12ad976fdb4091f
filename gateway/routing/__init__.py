"""How a request finds what answers it: from a name to a served model, from there to a place that runs it."""
