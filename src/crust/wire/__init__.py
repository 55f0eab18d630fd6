"""Bytes to checked records and back, one format a file."""
