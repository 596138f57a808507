"""Runtime services: devices, meshes, processes, memory, compiled programs, file writing and the hub client."""
