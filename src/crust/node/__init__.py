"""The asyncio front: nodes, connections, streams, dialling."""
