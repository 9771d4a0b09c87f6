"""Reads a finished or running study from disk, computes, draws and writes. Trains nothing."""
