"""The least that a daemon in Python takes: ssl and asyncio, idle; with a bundle, gmqtt connected.

Nothing of ours is imported, so that the figure is the libraries' alone.
"""

import asyncio
import ssl
import sys


async def connect(path: str) -> object:
    """Connect gmqtt with the identity in a bundle, and return it."""
    import json  # noqa: PLC0415 - the bare process has none of these
    import os  # noqa: PLC0415 - not in the bare one

    from gmqtt import Client  # noqa: PLC0415 - the same

    with open(path, encoding="utf-8") as file:  # noqa: ASYNC230, PTH123 - before anything runs
        bundle = json.load(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=bundle["ca_pem"])
    handle = os.memfd_create("identity")
    os.write(handle, (bundle["certificate_pem"] + bundle["key_pem"]).encode())
    context.load_cert_chain(f"/proc/self/fd/{handle}")
    os.close(handle)
    client = Client("bare", optimistic_acknowledgement=False)
    await client.connect(bundle["broker_host"], bundle["broker_port"], ssl=context, keepalive=6)
    return client


async def main() -> None:
    """Say that we are ready, then do nothing."""
    kept = await connect(sys.argv[1]) if len(sys.argv) > 1 else None
    print("{}", flush=True)
    await asyncio.Event().wait()
    del kept


if __name__ == "__main__":
    asyncio.run(main())
