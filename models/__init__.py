"""Encoders, fusion modules, and the classifier that joins them."""
