"""The Noise IK handshake, its envelope, and the keys that come of it."""
