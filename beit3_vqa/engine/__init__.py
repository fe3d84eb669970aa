"""A run, from its settled options to its results: build, train, validate, checkpoint, resume, evaluate, predict.

Read trainer.py first, then loop.py and training.py. api.py holds the entry points. Nothing here knows a task or a model
by name.
"""
