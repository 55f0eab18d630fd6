"""For tests of programs on top of Crust: simulated networks, and a NAT laboratory in network namespaces."""
