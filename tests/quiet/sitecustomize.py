"""For programs that tests start: their nodes do not ask the routers of this machine for anything."""

from crust.node.mapping import PortMappings

PortMappings.__init__.__kwdefaults__["gateways"] = list
