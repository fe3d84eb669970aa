"""What a process lives on: files, processes, precision, memory, signals."""
