"""STUN, NAT behaviour, candidates, punching, PCP and NAT-PMP."""
