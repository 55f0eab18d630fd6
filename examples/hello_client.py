"""Says hello to the contact that is given on the command line."""

import asyncio
import sys

import crust


async def main(target: str) -> None:
    async with crust.Node() as node:
        try:
            connection = await node.connect(target, timeout=10)
        except crust.ConnectError as error:
            print(error, file=sys.stderr)
            for attempt in error.report.attempts if error.report else []:
                print(f"  {attempt.transport} {attempt.candidate}: {attempt.outcome}", file=sys.stderr)
            sys.exit(1)
        await connection.send(b"hello")
        answer = await connection.receive()
        print(answer.data.decode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
