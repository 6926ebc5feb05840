"""Cellpose: networks of every generation, their files, and the decoding of their flows."""
