"""A zip for code contests: models, a script that answers with them offline, and what it was tried out with."""
