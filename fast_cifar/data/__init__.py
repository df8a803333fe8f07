"""Data sets from anywhere as uint8 tensors: archives, image folders, a synthetic set, splits, and the cache."""
