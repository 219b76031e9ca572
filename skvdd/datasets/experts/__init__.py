"""Scripted demonstrators, one module per task; they need the simulator."""
