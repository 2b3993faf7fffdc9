"""Where each field of a TOML or JSON document stands: path to line, for errors that name both.

`tomllib` and `json` keep no positions. The documents that come here were read by one of them
without an error, so this scanner only has to follow the structure, not to judge it. One scanner
serves both notations: JSON is a single inline value with `:` for `=`.
"""

import json
import re
from typing import Final

Path = tuple[str | int, ...]

_TOKEN: Final = re.compile(
    r"""[ \t\r]+ | \#[^\n]*
    | (?P<newline>\n)
    | (?P<string>\"{3}(?:[^\\]|\\.)*?\"{3,5} | '{3}.*?'{3,5}
        | "(?:[^"\\\n]|\\.)*" | '[^'\n]*')
    | (?P<mark>[\[\]{}=:,.])
    | (?P<bare>[^\s\[\]{}=:,."'\#]+)""",
    re.VERBOSE | re.DOTALL,
)
MAX_DEPTH: Final = 64
"""Tables and lists within each other; a use case needs eight."""
_ENDS_VALUE: Final = (",", "]", "}", "\n", "")


def toml_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every table, key and element of a valid TOML document.

    Raises RecursionError beyond MAX_DEPTH.
    """
    scanner = _Scanner(text)
    scanner.toml()
    return scanner.lines


def json_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every field and element of a valid JSON document.

    Raises RecursionError beyond MAX_DEPTH.
    """
    scanner = _Scanner(text)
    scanner.skip_newlines()
    scanner.value(())
    return scanner.lines


def locate(lines: dict[Path, int], path: Path) -> int | None:
    """Return the line of a field, or of the innermost thing around it that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


class _Scanner:
    """Follows a document token by token and notes the line of every path."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._tokens: list[tuple[str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup is not None:
                self._tokens.append((match.group(), line))
            line += match.group().count("\n")
        self._at = 0
        self._elements: dict[Path, int] = {}

    def toml(self) -> None:
        """Scan a whole TOML document."""
        table: Path = ()
        while self._skip_to_token():
            if self._peek() != "[":
                self._pair(table)
                continue
            line = self._line()
            array = self._next() == "[" and self._peek() == "["
            if array:
                self._next()
            table = self._header(self._key(), array, line)
            self._next()
            if array:
                self._next()

    def value(self, path: Path) -> None:
        """Scan one value that stands at `path`. Raises RecursionError beyond MAX_DEPTH."""
        if len(path) > MAX_DEPTH:
            raise RecursionError
        first = self._peek()
        if first == "{":
            self._inline(path)
        elif first == "[":
            self._array(path)
        else:
            while self._peek() not in _ENDS_VALUE:
                self._next()

    def skip_newlines(self) -> None:
        """Pass over empty lines."""
        while self._peek() == "\n":
            self._next()

    def _header(self, key: Path, array: bool, line: int) -> Path:
        """Resolve a table header: a name of an array of tables means its last element."""
        path: Path = ()
        for at, part in enumerate(key):
            path = (*path, part)
            self.lines.setdefault(path, line)
            if array and at == len(key) - 1:
                self._elements[path] = self._elements.get(path, -1) + 1
            if path in self._elements:
                path = (*path, self._elements[path])
                self.lines.setdefault(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = (*table, *self._key())
        for end in range(len(table) + 1, len(path) + 1):
            self.lines.setdefault(path[:end], line)
        self._next()
        self.skip_newlines()
        self.value(path)

    def _inline(self, path: Path) -> None:
        self._next()
        while self._skip_to_token() and self._peek() != "}":
            self._pair(path)
            self.skip_newlines()
            if self._peek() == ",":
                self._next()
        self._next()

    def _array(self, path: Path) -> None:
        self._next()
        index = 0
        while self._skip_to_token() and self._peek() != "]":
            self.lines[(*path, index)] = self._line()
            self.value((*path, index))
            index += 1
            self.skip_newlines()
            if self._peek() == ",":
                self._next()
        self._next()

    def _key(self) -> Path:
        parts = [_name(self._next())]
        while self._peek() == ".":
            self._next()
            parts.append(_name(self._next()))
        return tuple(parts)

    def _skip_to_token(self) -> bool:
        self.skip_newlines()
        return self._at < len(self._tokens)

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _line(self) -> int:
        return self._tokens[self._at][1]

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token


def _name(token: str) -> str:
    if token.startswith("'"):
        return token[1:-1]
    if token.startswith('"'):
        try:
            return str(json.loads(token))
        except ValueError:
            # An escape that only TOML knows: the raw name still leads a reader to the place.
            return token[1:-1]
    return token
