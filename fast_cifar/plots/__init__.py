"""The one place that draws: curves, heat maps and grids of images."""
