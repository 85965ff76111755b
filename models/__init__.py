"""Model programs."""
