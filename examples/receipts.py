"""Keep a receipt for a message, and show it to somebody who knows neither key nor network."""

import asyncio

import crust


def judge(line: str, said: bytes) -> str:
    """Anybody, anywhere, later: a receipt and what it is said to be for."""
    try:
        signer = crust.Receipt.from_text(line).verify(said)
    except crust.ReceiptError as error:
        return f"refused: {error}"
    return f"signed by {signer}"


async def main() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        connection = await alice.connect(await bob.contact())
        await connection.send(b"100 tonnes of wheat")

        message = await (await anext(bob)).receive()
        receipt = await message.receipt()  # with the next signature, usually within 20 ms
        print("number", receipt.claims.number, "in this session")

    print(judge(str(receipt), b"100 tonnes of wheat"))
    print(judge(str(receipt), b"900 tonnes of wheat"))


asyncio.run(main())
