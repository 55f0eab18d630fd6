"""Keys, AEAD and signatures, thin over `cryptography`."""
