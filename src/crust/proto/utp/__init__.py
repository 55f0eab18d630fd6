"""The uTorrent transport protocol (BEP 29)."""
