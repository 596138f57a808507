"""Makes a restoration resumable: its work folder, cache keys, lock and signal handling."""
