"""The only loop, and what comes out of it."""
