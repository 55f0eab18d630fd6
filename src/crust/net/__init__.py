"""The only place with sockets and the clock."""
