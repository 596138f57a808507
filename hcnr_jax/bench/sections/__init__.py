"""The sections of `hcnr bench`, one file each: every file defines `measure(context) -> list[Measurement]`."""
