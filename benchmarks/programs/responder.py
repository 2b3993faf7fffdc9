"""The bare other end of MQTT request and response: gmqtt, which answers at once.

    python -m benchmarks.programs.responder HOST PORT TOPIC ANSWER_BYTES QOS [BUNDLE]

Answers go to the request's response topic with its correlation data. With a bundle, over TLS.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

from gmqtt import Client

from benchmarks.harness.lines import say, serve
from protocols.transport import tls

KEEPALIVE_S: Final = 3600


async def main() -> None:
    """Respond until our parent hangs up."""
    host, port, topic, size, qos, answer_qos, *bundle = sys.argv[1:]
    context = tls.client_context(tls.load(Path(bundle[0]))) if bundle else None
    answer = bytes(range(256)) * (int(size) // 256 + 1)
    answer = answer[: int(size)]
    client = Client(f"responder-{topic.replace('/', '-')}")

    def on_message(_client: Any, _topic: str, _payload: bytes, _qos: int, properties: Any) -> int:
        client.publish(
            properties["response_topic"][0],
            answer,
            qos=int(answer_qos),
            correlation_data=properties["correlation_data"][0],
        )
        return 0

    subscribed = asyncio.get_running_loop().create_future()
    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set_result(None)
    await client.connect(host, int(port), ssl=context, keepalive=KEEPALIVE_S)
    client.subscribe(topic, qos=int(qos))
    await subscribed
    say({})

    async def nothing(_question: Any) -> dict[str, int]:
        return {}

    await serve(nothing)
    await client.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
