"""The contestants of `benchmarks/training.py`: each module is one, and runs as a process of its own."""
