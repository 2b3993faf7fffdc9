"""ONNX models of a few nodes, encoded by hand."""


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def proto(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Encode a protobuf message: numbers as varints, everything else by its length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


class Model:
    """Builds the bytes of small ONNX models, field numbers as in `onnx.proto`."""

    @staticmethod
    def value(name: str, dtype: int, *dims: int | str) -> bytes:
        shape = proto(*((1, proto((1 if isinstance(d, int) else 2, d))) for d in dims))
        return proto((1, name), (2, proto((1, proto((1, dtype), (2, shape))))))

    @staticmethod
    def tensor(name: str, dtype: int, dims: tuple[int, ...], data: bytes) -> bytes:
        return proto(*((1, d) for d in dims), (2, dtype), (8, name), (9, data))

    @staticmethod
    def external(name: str, dims: tuple[int, ...], location: str) -> bytes:
        where = proto((1, "location"), (2, location))
        return proto(*((1, d) for d in dims), (2, 1), (8, name), (13, where), (14, 1))

    @staticmethod
    def node(
        op: str, inputs: list[str], outputs: list[str], *attributes: bytes, domain: str = ""
    ) -> bytes:
        return proto(
            *((1, name) for name in inputs),
            *((2, name) for name in outputs),
            (4, op),
            *((5, attribute) for attribute in attributes),
            *(((7, domain),) if domain else ()),
        )

    @staticmethod
    def graph(
        nodes: list[bytes],
        inputs: list[bytes],
        outputs: list[bytes],
        initializers: tuple[bytes, ...] = (),
    ) -> bytes:
        return proto(
            *((1, node) for node in nodes),
            (2, "g"),
            *((5, one) for one in initializers),
            *((11, one) for one in inputs),
            *((12, one) for one in outputs),
        )

    @staticmethod
    def subgraph(name: str, graph: bytes) -> bytes:
        return proto((1, name), (6, graph), (20, 5))

    @staticmethod
    def number(name: str, value: int) -> bytes:
        return proto((1, name), (3, value), (20, 2))

    @staticmethod
    def whole(graph: bytes) -> bytes:
        return proto((1, 8), (7, graph), (8, proto((2, 17))))


def operator_sets(*sets: tuple[str, int]) -> list[tuple[int, bytes]]:
    """Return the fields of a model that name its operator sets."""
    return [(8, proto((1, domain), (2, version))) for domain, version in sets]


def function(
    name: str, domain: str, inputs: list[str], outputs: list[str], nodes: list[bytes]
) -> bytes:
    """Return a function of a model, which may call others of its domain."""
    return proto(
        (1, name),
        *((4, one) for one in inputs),
        *((5, one) for one in outputs),
        *((7, one) for one in nodes),
        *operator_sets_of_function(domain),
        (10, domain),
    )


def operator_sets_of_function(domain: str) -> list[tuple[int, bytes]]:
    return [(9, one) for _, one in operator_sets(("", 17), (domain, 1))]
