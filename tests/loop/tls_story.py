"""The story of a cell off loopback, told from inside the gateway's network namespace.

Run by `test_loop_tls.py` as `ip netns exec GATEWAY python tls_story.py FOLDER NODE_NAMESPACE...`.
Prints one line for each point that held; any other end is a failure.
"""

import asyncio
import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))

from loop_cell import Loop, Stream, chain, echo_module
from trust_authors import Author

import tona
from controller.trust.authority import Authority
from protocols.topics import Speaker
from protocols.transport.tls import client_context, load, save

GATEWAY = "10.77.0.1"
API = f"https://{GATEWAY}:8600"
PATIENCE_S = 60.0


class Story:
    def __init__(self, folder: Path, namespaces: list[str]) -> None:
        self.folder = folder
        self.namespaces = namespaces
        self.authority = Authority.init(folder / "authority", "cell")
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    def issue(self, name: str, speaker: Speaker) -> Path:
        path = self.folder / f"{name}.json"
        addresses = [GATEWAY] if speaker is Speaker.CONTROLLER else []
        bundle = self.authority.issue(
            name, speaker, "cell", broker_host=GATEWAY, api_url=API, addresses=addresses
        )
        save(bundle, path)
        return path

    async def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log
            )

    async def node(self, name: str, namespace: str, bundle: Path) -> None:
        await self.start(
            name,
            *("ip", "netns", "exec", namespace, sys.executable, "-m", "device_agent"),
            *("--bundle", str(bundle), "--data", str(self.folder / f"data-{name}")),
        )

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(one.wait() for one in self.processes.values()))


def held(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def states(loop: Loop, wanted: dict[str, str]) -> None:
    await loop.until(
        "/v1/fleet",
        lambda fleet: wanted.items() <= {one["node"]: one["state"] for one in fleet}.items(),
    )


async def tell(story: Story) -> None:
    controller = story.issue("gateway", Speaker.CONTROLLER)
    operator = story.issue("operator", Speaker.CLIENT)
    bundles = {name: story.issue(name, Speaker.NODE) for name in ("pi-1", "pi-2")}
    await story.start(
        "controller",
        *(sys.executable, "-m", "tona", "controller", "--broker", "mosquitto"),
        *("--broker-host", GATEWAY, "--broker-port", "8883", "--api-host", GATEWAY),
        *("--bundle", str(controller), "--authority", str(story.authority.folder)),
        *("--data", str(story.folder / "controller-data")),
    )
    for (name, bundle), namespace in zip(bundles.items(), story.namespaces, strict=True):
        await story.node(name, namespace, bundle)
    context = client_context(load(operator))
    async with httpx.AsyncClient(base_url=API, verify=context, timeout=PATIENCE_S) as http:
        loop = Loop(None, None, http)  # type: ignore[arg-type]
        await states(loop, {"pi-1": "online", "pi-2": "online"})
        held("two nodes joined over TLS")
        await sign(story, loop)
        tasks = await loop.submit("echo", 2, lost_after_ms=1500)
        async with tona.connect(operator) as client:
            stream = Stream(client, "echo", PATIENCE_S)
            workers = [asyncio.create_task(stream.work()) for _ in range(2)]
            await stream.more(20)
            held("requests are answered over TLS")
            big = os.urandom(300_000)
            result = await client.invoke("echo", {"x": big}, deadline_s=PATIENCE_S)
            assert bytes(result.outputs["y"]) == big
            held("a large value went through the store over TLS")
            await unplug(story, loop, stream, str(tasks[0]["node"]))
            stream.stop()
            await asyncio.gather(*workers)
            assert stream.failures == [], stream.failures
            assert stream.wrong == 0
            held("no request was lost")
        await keep_out(story, loop)


async def sign(story: Story, loop: Loop) -> None:
    """Nothing unsigned runs; then an author is allowed, and signs."""
    module = echo_module()
    path = f"/v1/artifacts/{sha256(module).hexdigest()}?name=echo&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    body = {"document": chain("stray", 1, module), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until("/v1/tasks", said_of_unsigned)
    (await loop.http.delete("/v1/usecases/stray")).raise_for_status()
    held("what nobody has signed does not run")
    author = Author("alice", "default", datetime.now(UTC).replace(microsecond=0))
    repository = story.authority.artifacts()
    repository.allow(author.request(), "default")
    response = await loop.http.put("/v1/trust/publishers/alice", content=author.sign(module))
    response.raise_for_status()
    await loop.until("/v1/tasks", lambda tasks: not tasks)
    held("an author was allowed and has signed")


def said_of_unsigned(tasks: list[dict[str, Any]]) -> bool:
    return any("is signed by nobody" in one["reason"] for one in tasks)


async def unplug(story: Story, loop: Loop, stream: Stream, serving: str) -> None:
    namespace = story.namespaces[int(serving[-1]) - 1]
    link = ["ip", "-n", namespace, "link", "set", "up0"]
    await run(*link, "down")
    await states(loop, {serving: "lost"})
    await stream.more(20)
    held("the link was unplugged and the tasks went on elsewhere")
    await run(*link, "up")
    await states(loop, {serving: "online"})
    held("the node came back by itself")


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def keep_out(story: Story, loop: Loop) -> None:
    """A node may not command; a stranger and a revoked node stay outside."""
    context = client_context(load(story.folder / "pi-1.json"))
    async with httpx.AsyncClient(base_url=API, verify=context, timeout=PATIENCE_S) as http:
        assert (await http.delete("/v1/usecases/echo")).status_code == 403
        assert (await http.get("/v1/fleet")).status_code == 403
    held("a node's certificate may not command the fleet")
    other = Authority.init(story.folder / "other", "cell")
    stranger = story.folder / "stranger.json"
    save(other.issue("pi-9", Speaker.NODE, "cell", broker_host=GATEWAY, api_url=API), stranger)
    await story.node("pi-9", story.namespaces[0], stranger)
    log = story.folder / "pi-9.log"
    await refused(log, "certificate")
    assert "pi-9" not in {one["node"] for one in await loop.get("/v1/fleet")}
    held("a stranger's certificate is refused")
    story.authority.revoke("pi-2")
    await states(loop, {"pi-2": "lost", "pi-1": "online"})
    held("a revoked node is put out")
    visitor = client_context(load(story.issue("visitor", Speaker.CLIENT)))
    async with httpx.AsyncClient(base_url=API, verify=visitor, timeout=PATIENCE_S) as http:
        (await http.get("/v1/fleet")).raise_for_status()
        story.authority.revoke("visitor")
        end_s = asyncio.get_running_loop().time() + PATIENCE_S
        while (await http.get("/v1/fleet")).status_code != 403:
            assert asyncio.get_running_loop().time() < end_s, "still served"
            await asyncio.sleep(0.1)
    held("a revoked client is refused on its open connection")


async def refused(log: Path, word: str) -> None:
    end_s = asyncio.get_running_loop().time() + PATIENCE_S
    while word not in log.read_text(encoding="utf-8"):
        assert asyncio.get_running_loop().time() < end_s, log.read_text(encoding="utf-8")
        await asyncio.sleep(0.1)


async def main(arguments: list[str]) -> None:
    story = Story(Path(arguments[0]), arguments[1:])
    try:
        await tell(story)
    finally:
        await story.end()


if __name__ == "__main__":
    assert echo_module()
    assert shutil.which("ip")
    asyncio.run(main(sys.argv[1:]))
