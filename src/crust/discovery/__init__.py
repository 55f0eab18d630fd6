"""Finding peers: bootstrap cache, local network, DHT, directory."""
