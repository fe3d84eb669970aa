"""The command line: a command is a file, with its flags and the one call that it makes."""
