"""The keys of root: one, or several of which so many have to sign; any may be kept elsewhere.

A single one lies in `root.pem`, several in `root-1.pem` and so on. A new one lies beside them as
`*.new.pem` until a root names it, so that no crash leaves a root whose keys nobody has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from controller.trust.signers import load_signer, new_signer, save_signer
from protocols.errors import UserError

KEYS_MAX: Final = 16
_NEW: Final = ".new.pem"


class RootKeys:
    """Those that lie in the folder of a repository's keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def here(self, root: Root) -> dict[str, CryptoSigner]:
        """Return the keys of the present root that are here, by their id."""
        self._settle(root)
        found = [load_signer(path) for path in self._paths() if not path.name.endswith(_NEW)]
        named = root.roles[Root.type].keyids
        return {one.public_key.keyid: one for one in found if one.public_key.keyid in named}

    def enough(self, root: Root) -> bool:
        """Whether so many are here that they can sign."""
        return len(self.here(root)) >= root.roles[Root.type].threshold

    def signers(self, root: Root, elsewhere: Sequence[Path] = ()) -> list[CryptoSigner]:
        """Return who signs the next root: all that are here or named. Raises UserError."""
        found = self.here(root)
        role = root.roles[Root.type]
        for path in elsewhere:
            signer = load_signer(path)
            if signer.public_key.keyid not in role.keyids:
                raise UserError(
                    f"{path} is not the key of the present root: name it with --root-key"
                )
            found[signer.public_key.keyid] = signer
        if len(found) < role.threshold:
            raise UserError(
                f"root takes {role.threshold} of its {len(role.keyids)} keys, {len(found)} are "
                f"here: bring root*.pem back to {self._folder}, or name them with --root-key"
            )
        return list(found.values())

    def draft(self, count: int) -> list[CryptoSigner]:
        """Make so many new keys, which the next root is to name."""
        names = ["root"] if count == 1 else [f"root-{at + 1}" for at in range(count)]
        fresh = []
        for name in names:
            signer = new_signer()
            save_signer(signer, self._folder / f"{name}{_NEW}")
            fresh.append(signer)
        return fresh

    def _settle(self, root: Root) -> None:
        """Finish a rotation: new keys are in force when root names them, others are removed."""
        drafts = [path for path in self._paths() if path.name.endswith(_NEW)]
        if not drafts:
            return
        named = root.roles[Root.type].keyids
        inforce = [one for one in drafts if load_signer(one).public_key.keyid in named]
        for path in drafts:
            if path in inforce:
                path.replace(path.with_name(path.name.removesuffix(_NEW) + ".pem"))
            else:
                path.unlink()
        for path in self._paths() if inforce else ():
            if load_signer(path).public_key.keyid not in named:
                path.unlink()

    def _paths(self) -> list[Path]:
        return sorted([*self._folder.glob("root.*pem"), *self._folder.glob("root-*.pem")])
