"""What a testbed is made of: names, addresses, and the words that make its networks. Pure.

Every gateway and every node has a network namespace. Gateways meet in the *backhaul*, a bridge to
which each is plugged by a veth pair behind a token bucket; the operator stands there too. A node
has one point-to-point link (TUN) to each cell, named after the cell; on the gateway's side it is
named after the node. Cell K owns 10.90.K.0/24: its gateway is 10.90.K.1, node N 10.90.K.(10+N).
A node that keeps its address has one link, `radio`, and 10.90.200.(10+N) in every cell.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, Struct

from tona.local.deployments import Deployment, cu_dus_ues
from tona.testbed.choices import SWITCH_MAX_MS, SWITCH_MS

CELLS_MAX: Final = 16
NODES_MAX: Final = 32
BACKHAUL: Final = "backhaul"
CU: Final = "cu"
RADIO: Final = "radio"
"""A node's side of its only link, where it keeps its address."""
UPLINK: Final = "up0"
"""A gateway's side of its veth pair."""
BROKER_PORT: Final = 8883
KEYS: Final = "keys"
"""Folder of the author's keys, in that of the testbed."""
API_PORT: Final = 8600
BACKHAUL_MBIT_PER_S: Final = 1000
BACKHAUL_BURST: Final = "256kb"
BACKHAUL_LATENCY: Final = "50ms"
OPERATOR_ADDRESS: Final = "10.90.0.254"
_FIRST_NODE: Final = 10
_KEPT: Final = 200
"""Third byte of the addresses that are kept from cell to cell."""
_FIRST_METRIC: Final = 100
_LAST_METRIC: Final = 4096


class Spec(Struct, frozen=True, kw_only=True):
    """What was asked for."""

    cells: Annotated[int, Meta(ge=1, le=CELLS_MAX)] = 3
    nodes: Annotated[int, Meta(ge=1, le=NODES_MAX)] = 6
    one_radio: int = 0
    """So many of the nodes, the last ones, have a single radio."""
    keep_address: bool = True
    """Nodes with one radio have an address of their own, and reach any gateway over each cell."""
    switch_ms: Annotated[float, Meta(ge=0, le=SWITCH_MAX_MS)] = SWITCH_MS
    """What a single radio takes from one cell to the next."""
    make_before_break: bool = True
    """False: nodes with two radios are told to leave before they attach, too."""
    seed: int = 0
    """Of losses and delays."""
    decides: str = "ts"
    """Who controls mobility, as in `[mobility]`; nobody: nodes go where they are sent."""

    @property
    def deployment(self) -> Deployment:
        """Who runs which roles."""
        return cu_dus_ues(self.cells)

    @property
    def cell_names(self) -> tuple[str, ...]:
        """The cells, each named after its gateway."""
        return tuple(f"du-{number}" for number in range(1, self.cells + 1))

    @property
    def node_names(self) -> tuple[str, ...]:
        """The nodes that move."""
        return tuple(f"ue-{number}" for number in range(1, self.nodes + 1))

    @property
    def gateways(self) -> tuple[str, ...]:
        """Every controller process."""
        return (CU, *self.cell_names)

    @property
    def edge_nodes(self) -> dict[str, str]:
        """The node that stands at each gateway, with its cell."""
        return {f"edge-{cell}": cell for cell in self.cell_names}

    @property
    def spaces(self) -> tuple[str, ...]:
        """Every network namespace."""
        return (BACKHAUL, *self.gateways, *self.node_names)

    @property
    def config(self) -> str:
        """What stands in the file of every controller."""
        return f'[mobility]\ndecides = "{self.decides}"\n'

    def radios(self, node: str) -> int:
        """Return how many links of a node can be up at once: 1, or 2 for as many as it hears."""
        return 1 if self.node_names.index(node) >= self.nodes - self.one_radio else 2

    def keeps(self, node: str) -> bool:
        """Return whether a node has the same address in every cell."""
        return self.keep_address and self.radios(node) == 1

    def host(self, gateway: str) -> str:
        """Return the address at which a gateway's broker and API listen."""
        return self._uplink(CU) if gateway == CU else f"10.90.{self._number(gateway)}.1"

    def _uplink(self, gateway: str) -> str:
        return f"10.90.0.{1 + self._number(gateway)}"

    def _number(self, gateway: str) -> int:
        return self.gateways.index(gateway)

    def address(self, node: str, cell: str) -> str:
        """Return a node's address in a cell."""
        third = _KEPT if self.keeps(node) else self._number(cell)
        return f"10.90.{third}.{_FIRST_NODE + 1 + self.node_names.index(node)}"

    # Words for `ip -batch` and `tc -batch`, by namespace, in the order of `spaces`.

    def interfaces(self, paths: Mapping[str, str]) -> dict[str, list[str]]:
        """Return what makes interfaces, addresses and routes; `paths` lead to the namespaces."""
        made = {BACKHAUL: self._backhaul(paths)}
        made.update({gateway: self._gateway(gateway) for gateway in self.gateways})
        made.update({node: self._node(node) for node in self.node_names})
        return made

    def shaping(self) -> dict[str, list[str]]:
        """Return what gives the backhaul its rate, both ways."""
        bucket = (
            f"root tbf rate {BACKHAUL_MBIT_PER_S}mbit burst {BACKHAUL_BURST} "
            f"latency {BACKHAUL_LATENCY}"
        )
        made = {one: [f"qdisc add dev {UPLINK} {bucket}"] for one in self.gateways}
        made[BACKHAUL] = [f"qdisc add dev {one} {bucket}" for one in self.gateways]
        return made

    def sysctls(self) -> dict[str, list[tuple[str, str]]]:
        """Return kernel settings (below /proc/sys/net/ipv4) by namespace."""
        forward = [("ip_forward", "1")]
        # A link without a carrier leads nowhere: the node is reached, and reaches, over another.
        skip = [(f"conf/{one}/ignore_routes_with_linkdown", "1") for one in ("all", "default")]
        made = {one: [*forward, *skip] for one in (BACKHAUL, *self.gateways)}
        made.update(dict.fromkeys(self.node_names, skip))
        return made

    def _backhaul(self, paths: Mapping[str, str]) -> list[str]:
        words = [
            "link set lo up",
            "link add br0 type bridge",
            "link set br0 up",
            f"addr add {OPERATOR_ADDRESS}/24 dev br0",
        ]
        for one in self.gateways:
            peer = f"type veth peer name {UPLINK} netns {paths[one]}"
            words += [f"link add {one} {peer}", f"link set {one} master br0 up"]
        return [*words, *self._ways("")]

    def _ways(self, gateway: str) -> list[str]:
        """Return the routes over the backhaul to every cell but a gateway's own."""
        ways = {self._number(cell): cell for cell in self.cell_names if cell != gateway}
        if gateway in {"", CU}:
            # The air knows where the node is: any gateway will do.
            ways[_KEPT] = self.cell_names[0]
        return [f"route add 10.90.{one}.0/24 via {self._uplink(ways[one])}" for one in ways]

    def _gateway(self, gateway: str) -> list[str]:
        words = [
            "link set lo up",
            f"addr add {self._uplink(gateway)}/24 dev {UPLINK}",
            f"link set {UPLINK} up",
            *self._ways(gateway),
        ]
        if gateway == CU:
            return words
        words.append(f"addr add {self.host(gateway)}/32 dev lo")
        for node in self.node_names:
            way = f"route add {self.address(node, gateway)}/32 dev {node}"
            words += [f"tuntap add dev {node} mode tun", f"link set {node} up", way]
        return words

    def _node(self, node: str) -> list[str]:
        words = ["link set lo up"]
        if self.keeps(node):
            own = self.address(node, self.cell_names[0])
            return [
                *words,
                f"tuntap add dev {RADIO} mode tun",
                f"addr add {own}/32 dev {RADIO}",
                f"link set {RADIO} up",
                f"route add default dev {RADIO} src {own}",
            ]
        for number, cell in enumerate(self.cell_names, 1):
            own = self.address(node, cell)
            words += [
                f"tuntap add dev {cell} mode tun",
                f"addr add {own}/32 dev {cell}",
                f"link set {cell} up",
                f"route add {self.host(cell)}/32 dev {cell} src {own}",
                # A gateway is reached over its own cell or not at all, as a base station is.
                f"route add unreachable {self.host(cell)}/32 metric {_LAST_METRIC}",
                f"route add default dev {cell} src {own} metric {_FIRST_METRIC + number}",
            ]
        return words

    def preferred(self, node: str, cell: str) -> list[str]:
        """Return the words that make a node reach everything else over its link to a cell."""
        if self.keeps(node):
            return []
        return [f"route replace default dev {cell} src {self.address(node, cell)}"]
