"""Greets whoever connects, and answers each message. Prints the contact to give away."""

import asyncio

import crust


async def serve(connection: crust.Connection) -> None:
    async for message in connection:
        await connection.send(b"you said: " + message.data)
    print("goodbye,", connection.peer)


async def main() -> None:
    identity = crust.Identity.load_or_create("server.key")
    async with crust.Node(identity=identity) as node, asyncio.TaskGroup() as tasks:
        print(await node.contact(), flush=True)
        async for connection in node:
            tasks.create_task(serve(connection))


if __name__ == "__main__":
    asyncio.run(main())
