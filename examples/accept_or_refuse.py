"""Decide about each peer before it learns anything about this node."""

import asyncio
import contextlib

import crust


async def doorkeeper(node: crust.Node, friends: set[crust.PeerId]) -> None:
    async for incoming in node.incoming():
        if incoming.peer in friends:
            with contextlib.suppress(crust.PeerLost):  # it went away, or came in over another address
                await incoming.accept()
        else:
            incoming.refuse()


async def main() -> None:
    async with crust.Node() as node, crust.Node() as friend, crust.Node() as stranger:
        door = asyncio.create_task(doorkeeper(node, {friend.id}))
        contact = await node.contact()

        connection = await friend.connect(contact)
        print("friend:", connection.path)
        try:
            await stranger.connect(contact)
        except crust.ConnectError as error:
            print("stranger:", error)
        door.cancel()


asyncio.run(main())
