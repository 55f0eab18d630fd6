"""Know what has arrived, and notice when the peer is gone for good."""

import asyncio

import crust


async def watch(node: crust.Node) -> None:
    async for event in node.events():
        print("event:", type(event).__name__)


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        events = asyncio.create_task(watch(bob))
        connection = await alice.connect(await bob.contact())
        accepted = await anext(bob)

        await connection.send(b"an order")
        await connection.flush()  # Bob's node holds all that was sent
        print("arrived:", (await accepted.receive()).data)

        await connection.close()
        try:
            await accepted.receive()
        except crust.ConnectionClosed:
            print("closed in good order")
        except crust.PeerLost as lost:
            print("lost:", lost.reason)
        events.cancel()


asyncio.run(main())
