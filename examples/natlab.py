"""An internet on this machine: two hosts behind NATs, one of them a carrier's, and a program that runs on one."""

import asyncio
import subprocess
import sys

from crust.testing.natlab import Behaviour, Lab, LabUnavailable, Nat, Ports


async def main() -> None:
    async with Lab() as lab:
        nat = Nat(filtering=Behaviour.ADDRESS_DEPENDENT, ports=Ports.RANDOM)
        home = await lab.site("home", nat=nat)
        one, two = await home.host(), await lab.place("cgnat")
        server = await lab.public("server")
        print("at home", one.address, "behind a carrier's NAT", two.address, "in public", server.address)

        program = await one.run([sys.executable, "-c", "print('hello')"], stdout=subprocess.PIPE)
        said, _ = await program.communicate()
        print("at home somebody says", said.decode().strip())


try:
    asyncio.run(main())
except LabUnavailable as reason:
    print("no lab on this machine:", reason)
