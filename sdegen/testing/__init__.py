"""The project's own laws, for other people's classes."""

from .laws import LawError, check_model, check_sde, check_solver

__all__ = ["LawError", "check_model", "check_sde", "check_solver"]
