"""Multistep methods."""
