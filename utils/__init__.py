"""What the scripts share, in layers; a module imports only from layers above its own (`tests/test_architecture.py`)."""
