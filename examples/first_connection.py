"""Two nodes, one encrypted connection, one message."""

import asyncio

import crust


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        contact = await bob.contact()  # one line of text to give away
        connection = await alice.connect(contact)
        await connection.send(b"hello")

        accepted = await anext(bob)
        message = await accepted.receive()
        print(message.data, "from", accepted.peer, "over", accepted.path)


asyncio.run(main())
