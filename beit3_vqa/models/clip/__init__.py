"""CLIP: both towers through transformers, adapters through peft."""
