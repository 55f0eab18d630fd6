"""What a Linux router of a lab is told: nftables rules, kernel settings, the configuration of miniupnpd."""

from __future__ import annotations

import uuid

from crust.testing.natlab.declare import Firewall, Ports, Router

__all__ = ["miniupnpd_configuration", "netfilter_rules", "router_sysctls", "timeout_sysctls"]

_UPNP_NAMES = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")


def router_sysctls(router: Router) -> dict[str, str | int]:
    """Settings that make a namespace a router."""
    settings: dict[str, str | int] = {
        "ipv4/ip_forward": 1,
        "ipv4/conf/all/rp_filter": 0,
        "ipv4/conf/default/rp_filter": 0,
        "ipv4/conf/all/send_redirects": 0,
        "ipv4/conf/default/send_redirects": 0,
    }
    if router.ipv6:
        settings["ipv6/conf/all/forwarding"] = 1
    return settings


def timeout_sysctls(router: Router) -> dict[str, str | int]:
    """Connection-tracking timeouts; they exist once the rules are loaded."""
    nat = router.nat
    if nat is None:
        return {}
    established, opening = round(nat.tcp_timeout), round(nat.tcp_transitory_timeout)
    return {
        "netfilter/nf_conntrack_udp_timeout": round(nat.udp_timeout),
        "netfilter/nf_conntrack_udp_timeout_stream": round(nat.udp_timeout),
        "netfilter/nf_conntrack_tcp_timeout_established": established,
        "netfilter/nf_conntrack_tcp_timeout_syn_sent": min(opening, 120),
        "netfilter/nf_conntrack_tcp_timeout_close": round(nat.tcp_reset_timeout),
    }


def _outgoing(firewall: Firewall) -> list[str]:
    rules = [f"meta l4proto {protocol} drop" for protocol in sorted(firewall.blocked)]
    if firewall.tcp_ports is not None:
        ports = ", ".join(str(port) for port in sorted(firewall.tcp_ports))
        rules.append(f'iifname "lan" tcp dport != {{ {ports} }} drop')
    return rules


def netfilter_rules(router: Router) -> str:
    """The rules of a router whose interfaces are `wan` and `lan`, for `nft -f -`."""
    nat = router.nat
    unexpected = ['iifname "wan" drop']
    if nat is not None and nat.refuse:
        unexpected.insert(0, 'iifname "wan" meta l4proto tcp reject with tcp reset')
    expected = [
        'iifname "wan" ct state established,related accept',
        # Neighbour discovery and error messages are no connections (RFC 4890 §4.4).
        'iifname "wan" meta l4proto icmpv6 accept',
    ]
    received = [] if router.open_input else [*expected, *unexpected]
    forwarded = [*_outgoing(router.firewall), *expected]
    chains = []
    if router.port_mapping:
        forwarded += ["jump miniupnpd", 'iifname "wan" ct status dnat accept']
        chains += [f"chain {name} {{ }}" for name in _UPNP_NAMES]
        chains += [
            "chain prerouting { type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }",
        ]
    forwarded += unexpected
    if nat is not None:
        style = "masquerade fully-random" if nat.ports is Ports.RANDOM else "masquerade"
        first = "jump postrouting_miniupnpd; " if router.port_mapping else ""
        rule = f'{first}oifname "wan" meta nfproto ipv4 {style};'
        chains.append(f"chain postrouting {{ type nat hook postrouting priority srcnat; {rule} }}")
    chains.append(f"chain input {{ type filter hook input priority filter; {_join(received)} }}")
    chains.append(f"chain forward {{ type filter hook forward priority filter; {_join(forwarded)} }}")
    return "flush ruleset\ntable inet filter {\n" + "\n".join(chains) + "\n}\n"


def _join(rules: list[str]) -> str:
    return " ".join(f"{rule};" for rule in rules)


def miniupnpd_configuration(router: Router, lan_address: str) -> str:
    """The configuration file of miniupnpd on such a router."""
    lines = {
        "ext_ifname": "wan",
        "listening_ip": "lan",
        "http_port": 0,
        "enable_natpmp": "yes",
        "enable_upnp": "yes",
        "secure_mode": "yes",
        "system_uptime": "no",
        "notify_interval": 900,
        "ipv6_disable": "no" if router.ipv6 else "yes",
        "uuid": uuid.uuid5(uuid.NAMESPACE_URL, f"crust:natlab:{lan_address}"),
        "upnp_table_name": "filter",
        "upnp_nat_table_name": "filter",
        "upnp_forward_chain": _UPNP_NAMES[0],
        "upnp_nat_chain": _UPNP_NAMES[1],
        "upnp_nat_postrouting_chain": _UPNP_NAMES[2],
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())
