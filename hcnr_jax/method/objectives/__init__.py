"""Objectives of the compensation: how restored neurons are corrected. One file a variant, one table."""
