"""Two streams over one connection; a slow reader of one does not hold up the other."""

import asyncio

import crust


async def serve(connection: crust.Connection) -> None:
    async for stream in connection.streams():
        text = await stream.read()  # until the peer ends its half
        stream.write(f"{stream.name}: {len(text)} bytes".encode())
        await stream.close()


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        connection = await alice.connect(await bob.contact())
        server = asyncio.create_task(serve(await anext(bob)))

        log = await connection.open_stream("log")
        picture = await connection.open_stream("picture")
        picture.write(bytes(100_000))
        await picture.drain()  # waits while the peer is behind
        log.write(b"a line\n")
        for stream in (log, picture):
            stream.write_eof()  # nothing more from us; the answer may still come
            print((await stream.read()).decode())

        await connection.close()
        await server


asyncio.run(main())
