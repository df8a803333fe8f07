"""The machine and the process: device, distributed context, signals, files, and errors."""
