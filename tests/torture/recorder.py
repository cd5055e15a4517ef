"""Write down every change that a command makes to a disk, in order, with the data: the history of one run.

The history is in terms of inodes and of the names in folders, as a file system sees it, so that `crash_states` can tell
what may be left of it. The changes are made for real as well, and a recording is checked against the disk at the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worlds import Entry, Snapshot

__all__ = ["Inode", "Operation", "Recorder", "Tree", "applied"]

ROOT = 0


@dataclass
class Inode:
    """A file, a folder or a link, whatever its names."""

    mode: int
    owner: tuple[int, int]
    extended: dict[str, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)
    """Of a file or a link."""
    names: dict[str, int] = field(default_factory=dict)
    """Of a folder: inodes by name."""

    def copy(self) -> Inode:
        """One more of the same."""
        return Inode(self.mode, self.owner, dict(self.extended), bytearray(self.content), dict(self.names))

    @property
    def folder(self) -> bool:
        """Whether it has names in it."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Operation:
    """One change. `kind` is make, unlink, link, rename, exchange; write, truncate, allocate; attribute; or fsync."""

    kind: str
    inode: int = -1
    """Which file or folder is written, changed or synced, or comes to be."""
    places: tuple[tuple[int, str], ...] = ()
    """Names touched, each as folder and name."""
    offset: int = 0
    data: bytes = b""
    size: int = 0
    attribute: tuple[str, Any] = ("", None)
    fresh: Inode | None = None
    """What a new inode begins as."""

    @property
    def naming(self) -> bool:
        """Whether names change."""
        return bool(self.places)


class Tree:
    """Inodes and names, on which operations can be carried out."""

    def __init__(self, inodes: dict[int, Inode]) -> None:
        self.inodes = inodes

    @classmethod
    def of(cls, folder: Path) -> tuple[Tree, dict[int, int]]:
        """What is on the disk; and which inode number there is which here."""
        tree, numbers = cls({}), {}

        def take(path: str) -> int:
            found = os.lstat(path)
            if found.st_ino in numbers:
                return numbers[found.st_ino]
            number = numbers[found.st_ino] = len(numbers)
            extended = {key: os.getxattr(path, key, follow_symlinks=False) for key in _extended(path)}
            inode = tree.inodes[number] = Inode(found.st_mode, (found.st_uid, found.st_gid), extended)
            if stat.S_ISREG(found.st_mode):
                inode.content[:] = Path(path).read_bytes()
            elif stat.S_ISLNK(found.st_mode):
                inode.content[:] = os.fsencode(os.readlink(path))
            else:
                for name in sorted(os.listdir(path)):
                    inode.names[name] = take(f"{path}/{name}")
            return number

        take(os.fspath(folder))
        return tree, numbers

    def copy(self) -> Tree:
        """One more of the same."""
        return Tree({number: inode.copy() for number, inode in self.inodes.items()})

    def do(self, operation: Operation) -> None:
        """Carry out one operation; one whose names are not there, or taken, cannot have reached the disk."""
        names = [self.inodes[folder].names if folder in self.inodes else None for folder, _ in operation.places]
        if None in names:
            return
        self._do(operation, [known for known in names if known is not None])

    def _do(self, operation: Operation, names: list[dict[str, int]]) -> None:
        keys = [name for _, name in operation.places]
        if operation.kind == "make":
            assert operation.fresh is not None
            self.inodes.setdefault(operation.inode, operation.fresh.copy())
            names[0][keys[0]] = operation.inode
        elif operation.kind == "link":
            if operation.inode in self.inodes:
                names[0][keys[0]] = operation.inode
        elif operation.kind == "unlink":
            names[0].pop(keys[0], None)
        elif operation.kind == "rename":
            if keys[0] in names[0]:
                names[1][keys[1]] = names[0].pop(keys[0])
        elif operation.kind == "exchange":
            if keys[0] in names[0] and keys[1] in names[1]:
                names[0][keys[0]], names[1][keys[1]] = names[1][keys[1]], names[0][keys[0]]
        elif operation.kind != "fsync" and operation.inode in self.inodes:
            applied(self.inodes[operation.inode], operation)

    def walk(self, number: int = ROOT, path: str = ".") -> list[tuple[str, int]]:
        """Every path and its inode, folders before what is in them."""
        found = [(path, number)]
        for name, below in sorted(self.inodes[number].names.items()):
            if below in self.inodes:
                found += self.walk(below, name if path == "." else f"{path}/{name}")
        return found

    def snapshot(self, name: str) -> Snapshot | None:
        """As `worlds.snapshot` would find the folder called `name`."""
        number = self.inodes[ROOT].names.get(name)
        if number is None or number not in self.inodes:
            return None
        found: Snapshot = {}
        for path, below in self.walk(number):
            inode = self.inodes[below]
            content = None if inode.folder else bytes(inode.content)
            found[path] = Entry(inode.mode, inode.owner, tuple(sorted(inode.extended.items())), content)
        return found

    def key(self) -> tuple[Any, ...]:
        """Equal for equal trees."""
        found = []
        for path, number in self.walk():
            inode = self.inodes[number]
            content = hash(bytes(inode.content))
            found.append((path, number, inode.mode, inode.owner, tuple(inode.extended.items()), content))
        return tuple(found)

    def write(self, world: Path) -> None:
        """Put it on a disk; `world` must be free."""
        seen: dict[int, Path] = {}
        for path, number in self.walk():
            inode, target = self.inodes[number], world / path
            if number in seen:
                os.link(seen[number], target)
                continue
            if inode.folder:
                target.mkdir(mode=0o700)
            else:
                seen[number] = target
                target.write_bytes(inode.content)
        for path, number in reversed(self.walk()):
            inode, target = self.inodes[number], world / path
            for key, value in inode.extended.items():
                os.setxattr(target, key, value)
            os.chown(target, *inode.owner)
            os.chmod(target, stat.S_IMODE(inode.mode))


def applied(inode: Inode, operation: Operation) -> None:
    """Change the bytes or attributes of an inode."""
    if operation.kind == "write":
        end = operation.offset + len(operation.data)
        if len(inode.content) < operation.offset:
            inode.content.extend(bytes(operation.offset - len(inode.content)))
        inode.content[operation.offset : end] = operation.data
    elif operation.kind == "truncate":
        del inode.content[operation.size :]
        inode.content.extend(bytes(operation.size - len(inode.content)))
    elif operation.kind == "allocate":
        inode.content.extend(bytes(max(0, operation.size - len(inode.content))))
    elif operation.kind == "attribute":
        what, value = operation.attribute
        if what == "mode":
            inode.mode = stat.S_IFMT(inode.mode) | value
        elif what == "owner":
            inode.owner = value
        else:
            inode.extended[what] = value


def _extended(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []


class Recorder:
    """A hook for `disk.installed` that makes every call and writes it down."""

    def __init__(self, world: Path) -> None:
        self._world = os.fspath(world)
        self.begin, self._numbers = Tree.of(world)
        self.live = self.begin.copy()
        self.history: list[Operation] = []
        self.outside: list[str] = []
        """Calls on something that is not in the world."""

    def __call__(self, number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Make the call; only what was done is written down."""
        position = os.lseek(arguments[0], 0, os.SEEK_CUR) if name == "write" else 0
        place = [self._place(argument) for argument in arguments if isinstance(argument, Path)]
        before = len(self.history)
        result = real(*arguments)
        if None in place:
            self.outside.append(name)
            return result
        self._write_down(name, arguments, [known for known in place if known], position, result)
        for operation in self.history[before:]:
            self.live.do(operation)
        return result

    def _place(self, path: Path) -> tuple[int, str] | None:
        """Folder and name of a path; None outside of the world."""
        inside = os.path.relpath(os.path.abspath(path), self._world)
        if inside.startswith(".."):
            return None
        number, parts = ROOT, Path(inside).parts
        for part in parts[:-1]:
            number = self.live.inodes[number].names[part]
        return (number, parts[-1]) if parts else (ROOT, ".")

    def _at(self, place: tuple[int, str]) -> int:
        return self.live.inodes[place[0]].names[place[1]] if place[1] != "." else ROOT

    def _open(self, descriptor: int) -> int:
        return self._numbers[os.fstat(descriptor).st_ino]

    def _write_down(self, name: str, arguments: tuple[Any, ...], places: list[Any], at: int, result: Any) -> None:
        note = self.history.append
        if name in ("create", "take_lock", "mkdir"):
            if name != "take_lock" or places[0][1] not in self.live.inodes[places[0][0]].names:
                note(self._made(places[0], arguments[0]))
        elif name in ("write", "pwrite"):
            offset = arguments[2] if name == "pwrite" else at
            data = bytes(memoryview(arguments[1]).cast("B")[:result])
            note(Operation("write", self._open(arguments[0]), offset=offset, data=data))
        elif name in ("fallocate", "truncate"):
            kind = "allocate" if name == "fallocate" else "truncate"
            note(Operation(kind, self._open(arguments[0]), size=arguments[1]))
        elif name == "fsync":
            note(Operation("fsync", self._open(arguments[0])))
        elif name in ("chmod", "chown", "setxattr"):
            target = self._open(arguments[0]) if isinstance(arguments[0], int) else self._at(places[0])
            values = {"chmod": ("mode", arguments[1]), "chown": ("owner", tuple(arguments[1:]))}
            note(Operation("attribute", target, attribute=values.get(name, (arguments[1], arguments[-1]))))
        elif name == "link":
            note(Operation("link", self._at(places[0]), places=(places[1],)))
        elif name in ("unlink", "rmdir"):
            note(Operation("unlink", self._at(places[0]), places=(places[0],)))
        elif name in ("rename", "exchange"):
            note(Operation(name, self._at(places[0]), places=tuple(places)))
        elif name == "clone" and result:
            raise NotImplementedError("shared extents are not modelled; run this in a folder in memory")

    def _made(self, place: tuple[int, str], path: Path) -> Operation:
        found = os.lstat(path)
        number = self._numbers[found.st_ino] = max(self._numbers.values()) + 1
        return Operation("make", number, (place,), fresh=Inode(found.st_mode, (found.st_uid, found.st_gid)))
