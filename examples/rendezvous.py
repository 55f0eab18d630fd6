"""Two nodes find each other through a third one, by public key alone."""

import asyncio

import crust


async def connect_when_there(node: crust.Node, peer: crust.PeerId) -> crust.Connection:
    """Dial until the peer has come to the node in the middle."""
    while True:
        try:
            return await node.connect(peer, timeout=10)
        except crust.ConnectError as error:
            print("not yet:", error)
            await asyncio.sleep(0.1)


async def main() -> None:
    async with crust.Node() as middle:
        config = crust.Config(bootstrap=[str(await middle.contact())])
        async with crust.Node(config=config) as alice, crust.Node(config=config) as bob:
            async with asyncio.timeout(20):
                connection = await connect_when_there(alice, bob.id)
            print("connected:", connection.peer == bob.id, "path:", connection.path)


asyncio.run(main())
