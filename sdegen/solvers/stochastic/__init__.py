"""Solvers that draw noise."""
