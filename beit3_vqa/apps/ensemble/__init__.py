"""Several models' answers as one submission."""
