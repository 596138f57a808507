"""Judges a completion: answered, refused or undetermined."""
