"""Decide about each peer before it learns anything about this node."""

import asyncio

import crust


async def doorkeeper(node: crust.Node, friends: set[crust.PeerId]) -> None:
    async for incoming in node.incoming():
        if incoming.peer in friends:
            await incoming.accept()
        else:
            await incoming.refuse()


async def main() -> None:
    async with crust.Node() as node, crust.Node() as friend, crust.Node() as stranger:
        door = asyncio.create_task(doorkeeper(node, {friend.id}))
        contact = await node.contact()

        connection = await friend.connect(contact)
        print("friend:", connection.path.kind)
        try:
            await stranger.connect(contact)
        except crust.RefusedError as error:
            print("stranger:", error)
        door.cancel()


asyncio.run(main())
