"""Keys of a bus and its clients, in files as users have them."""

from __future__ import annotations

from pathlib import Path

from phase_bus.core.authorized import Authorized, KeyRole, authorize, authorized_file, revoke
from phase_bus.core.keys import Key, read_key, write_new_key


class Keyring:
    """A directory with the key of a bus, and of clients that it lets in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bus = write_new_key(directory / "bus" / "key.yaml")

    def file(self, name: str) -> str:
        """Return the key file of a client."""
        return str(self.directory / name / "key.yaml")

    def stranger(self, name: str, *, bus: str = "") -> Key:
        """Make a key that the bus does not know, or one that is for another bus."""
        return write_new_key(Path(self.file(name)), bus or self.bus.public)

    def client(self, name: str, *roles: KeyRole) -> Key:
        """Make a key that the bus lets in."""
        key = self.stranger(name)
        self.authorize(name, *roles)
        return key

    def authorize(self, name: str, *roles: KeyRole) -> None:
        """Let the bus know a key, or what it may do from now on."""
        public = read_key(Path(self.file(name))).public
        authorize(authorized_file(self.bus), Authorized(name=name, public=public, roles=roles))

    def revoke(self, name: str) -> None:
        """Let a client no longer in."""
        revoke(authorized_file(self.bus), name)
