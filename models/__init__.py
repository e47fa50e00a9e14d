"""Encoders, fusion modules, the classifier that combines them, and initial weights."""
