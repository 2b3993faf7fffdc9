"""Identities for everybody in a testbed whose traffic leaves loopback, and its one author."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx

from controller.trust.authority import Authority
from protocols.topics import Speaker
from protocols.transport import tls
from protocols.transport.session import DEFAULT_TENANT
from tona.bundle import File
from tona.cli.api import Api
from tona.publishing import TIMEOUT_S, Signing, Wanted, new_key, read_request
from tona.testbed.plan import API_PORT, BROKER_PORT, CU, KEYS, Spec
from tona.testbed.proxy import BESIDE

AUTHOR: Final = "testbed"
OPERATOR: Final = "operator"


def client_of(node: str) -> str:
    """Return the name of the client that speaks for a node's user."""
    return f"{BESIDE}{node}"


class Identities:
    """An authority of the testbed's own, with a bundle for each gateway, node and client."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        """Make them all. Raises UserError, EnvironmentFailure."""
        self.folder = folder
        self._spec = spec
        self.authority = Authority.init(folder / "authority", "testbed")
        _, request = new_key(folder / KEYS, AUTHOR)
        self.authority.artifacts().allow(read_request(request), DEFAULT_TENANT)
        self._bundles = folder / "bundles"
        self._bundles.mkdir(mode=0o700)
        begun = {**spec.deployment.nodes(spec.nodes), **spec.edge_nodes}
        for gateway in spec.gateways:
            self._issue(gateway, Speaker.CONTROLLER, gateway)
        for node, cell in begun.items():
            self._issue(node, Speaker.NODE, cell)
        for node in spec.node_names:
            self._issue(client_of(node), Speaker.CLIENT, CU)
        self._issue(OPERATOR, Speaker.CLIENT, CU)

    def bundle(self, name: str) -> Path:
        """Return the file of an identity."""
        return self._bundles / f"{name}.bundle"

    def _issue(self, name: str, speaker: Speaker, cell: str) -> None:
        host = self._spec.host(cell)
        made = self.authority.issue(
            name,
            speaker,
            cell,
            broker_host=host,
            broker_port=BROKER_PORT,
            # NAMO's, for people; a node hears of stores from its scheduler.
            api_url=f"https://{self._spec.host(CU)}:{API_PORT}",
            addresses=(host,) if speaker is Speaker.CONTROLLER else (),
        )
        tls.save(made, self.bundle(name))

    async def sign(self, api: Api, files: Sequence[File]) -> None:
        """Vouch for artifacts as the author. Raises UserError, EnvironmentFailure, PeerError."""
        state = await api.call("trust.show")
        wanted = [Wanted(one.digest, one.size_bytes) for one in files]
        operator = tls.load(self.bundle(OPERATOR))

        def work() -> None:
            with httpx.Client(
                base_url=api.url,
                verify=tls.client_context(operator),
                trust_env=False,
                timeout=TIMEOUT_S,
            ) as http:
                root = operator.root_json.encode()
                Signing(http, root, state, self.folder / KEYS).sign(DEFAULT_TENANT, wanted)

        # A thread of its own: those that are there already may be in another testbed's network.
        with ThreadPoolExecutor(1) as own:
            await asyncio.get_running_loop().run_in_executor(own, work)
