"""What a run needs of its machine: devices, processes, memory, compiled programs, files, the hub."""
