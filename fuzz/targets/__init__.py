"""All targets, by name."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets import contact, frames, handshake, natwire, peer_id, receipt, record, session, signal, utp

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (peer_id, contact, handshake, record, frames, session, receipt, signal, utp, natwire)
    for target in module.TARGETS
}
