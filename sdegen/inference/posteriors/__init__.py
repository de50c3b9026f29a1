"""Draws from the law of data given what was seen of them: particles, weighted flows, sweeps and repainting."""
