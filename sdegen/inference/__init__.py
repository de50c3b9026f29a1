"""What one asks of a model: samples, latents, densities."""
