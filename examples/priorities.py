"""An urgent message overtakes megabytes that were sent before it."""

import asyncio

import crust


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        connection = await alice.connect(await bob.contact())
        accepted = await anext(bob)

        bulk = asyncio.create_task(connection.send(bytes(30_000_000), priority=crust.Priority.BULK))
        await asyncio.sleep(0)  # the bulk message is under way
        await connection.send(b"stop", priority=crust.Priority.URGENT)

        for _ in range(2):
            message = await accepted.receive()
            print(message.priority.name, len(message.data), "bytes")
        await bulk


asyncio.run(main())
