"""The loops and what they need: optimiser, precision, checkpoints. No files of data, no task names."""
