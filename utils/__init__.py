"""What the scripts share, in layers; a module imports only from layers above its own (`tests/test_architecture.py`)."""

VERSION = "0.9.0"
"""Of the whole, by semantic versioning (https://semver.org). `CITATION.cff` repeats it."""
