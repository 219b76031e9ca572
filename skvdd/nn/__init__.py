"""Torch modules and pure tensor functions; nothing here imports scikit-learn."""
