"""Scores judged answers: metrics, intervals, calibration, and the constraints a setting must keep."""
