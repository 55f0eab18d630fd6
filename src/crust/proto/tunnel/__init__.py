"""The encrypted tunnel over UDP: handshake, keys, roaming; µTP runs inside."""
