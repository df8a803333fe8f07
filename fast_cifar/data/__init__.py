"""Data sets as uint8 tensors: official archives, image folders, the synthetic set; their splits and their cache."""
