"""The options of a run, and what they are where nobody gave them."""
