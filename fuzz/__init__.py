"""Fuzzing: random damage to every file that is read and every argument that is taken."""
