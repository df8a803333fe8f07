"""What a run leaves behind: its folder, checkpoints and lines on the screen, and the statistics of several runs."""
