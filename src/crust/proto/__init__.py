"""Engines without I/O: no socket, task, clock or randomness of their own."""
