"""Bundles for a deployment over TLS, and what runs in it signed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from deployment_world import World
from trust_authors import Author

from controller.trust.authority import Authority
from protocols.topics import Speaker
from protocols.transport.tls import load, save
from tona.local.deployments import deployment
from tona.local.place import LOOPBACK, Place

NAME = "cu-dus-ues"
OPERATOR, OBSERVER = "operator", "observer"


class Identities:
    """A bundle for everybody of the deployment, and for those who look at it."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.authority = Authority.init(folder / "authority", "fleet")
        self._folder = folder
        gateways = [one.name for one in deployment(NAME).processes]
        cells = deployment(NAME).nodes(nodes)
        for name in gateways:
            self._issue(name, Speaker.CONTROLLER, name)
        for name, cell in cells.items():
            self._issue(name, Speaker.NODE, cell)
        # Nothing is served at the broker of the CU: its controller says where services are.
        self._issue(OPERATOR, Speaker.CLIENT, "cu")
        self._issue(OBSERVER, Speaker.CONTROLLER, "cu")
        authority = str(self.authority.folder)
        self.places: Mapping[str, Place] = {
            **{
                one: Place(broker="mosquitto", bundle=str(self.file(one)), authority=authority)
                for one in gateways
            },
            **{one: Place(bundle=str(self.file(one))) for one in cells},
        }

    def file(self, name: str) -> Path:
        return self._folder / f"{name}.bundle"

    def renewed(self, world: World) -> Path:
        """Return the operator's bundle with the ports that the deployment has come to have."""
        bundle = load(self.file(OPERATOR))
        [broker] = [one.broker for one in world.seen.processes if one.name == bundle.cell]
        port = int(broker.rpartition(":")[2])
        fields = {name: getattr(bundle, name) for name in bundle.__struct_fields__}
        fields |= {"api_url": world.seen.api_url, "broker_port": port}
        save(type(bundle)(**fields), self.file(OPERATOR))
        return self.file(OPERATOR)

    async def publish(self, world: World, **modules: bytes) -> None:
        """Bring modules to the store, by name, signed by an author who may."""
        author = Author("alice", "default", datetime.now(UTC).replace(microsecond=0))
        self.authority.artifacts().allow(author.request(), "default")
        for name, module in modules.items():
            signed = author.sign(module)
            path = f"/v1/artifacts/{sha256(module).hexdigest()}?name={name}&media=wasm"
            (await world.http.put(path, content=module)).raise_for_status()
            said = await world.http.put("/v1/trust/publishers/alice", content=signed)
            said.raise_for_status()

    def _issue(self, name: str, speaker: Speaker, cell: str) -> None:
        addresses = (LOOPBACK,) if speaker is Speaker.CONTROLLER else ()
        made = self.authority.issue(name, speaker, cell, broker_host=LOOPBACK, addresses=addresses)
        save(made, self.file(name))
