"""Torch modules and pure tensor functions; nothing here knows of scikit-learn."""
