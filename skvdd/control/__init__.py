"""Policies in control: one state in, one action out, in the least time."""

from skvdd.control.controller import Controller

__all__ = ["Controller"]
