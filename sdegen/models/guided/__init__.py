"""Models made of models: guidance, potentials and observations, one file a method."""
