"""Checkpoints of a run, from the file to the state that training goes on from.

io: read and write one file. manifest: the JSON beside it, with its checksum. validate: check what a file holds before
anything of it is used. folder: names, order and deletion of the files of a run. save: collect a run's state and write
it. same_run: check that a command belongs to the run of a checkpoint. resume: find that checkpoint and restore it.
"""
