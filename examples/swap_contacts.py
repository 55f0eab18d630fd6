"""Two nodes connect with nothing between them but the contacts that their owners have swapped."""

import asyncio

import crust


async def dial(node: crust.Node, theirs: str) -> crust.Connection:
    """Both sides call this, within a minute or so of each other."""
    return await node.connect(theirs, swapped=True, timeout=120)


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        # What alice and bob would send each other by mail or in a chat.
        lines = [str(await node.contact(patience=1)) for node in (alice, bob)]
        one, other = await asyncio.gather(dial(alice, lines[1]), dial(bob, lines[0]))
        print("connected:", (one.peer, other.peer) == (bob.id, alice.id))


asyncio.run(main())
