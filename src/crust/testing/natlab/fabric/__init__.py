"""The user-space part of a lab: networks, links and NATs as engines without I/O, and the process that pumps them.

This package runs in a process of its own and imports nothing of Crust but itself, so that it starts in 30 ms.
"""
