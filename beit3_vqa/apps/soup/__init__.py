"""One model made of several checkpoints: their weights averaged."""
