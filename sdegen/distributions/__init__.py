"""Laws in closed form."""
