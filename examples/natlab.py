"""An internet on this machine: two hosts behind NATs, one of them a carrier's, and a program that runs on one."""

import asyncio
import subprocess
import sys

from crust.testing.natlab import Lab, LabUnavailable, Nat


async def main() -> None:
    async with Lab() as lab:
        home = await lab.site("home", nat=Nat(filtering="address-dependent", ports="random"))
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
