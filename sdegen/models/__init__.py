"""Where the belief comes from."""
