"""Tools that know no diffusion."""
