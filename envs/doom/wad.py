"""Write a level as a WAD that the engine plays: UDMF map, textures, object classes."""

import struct
from pathlib import Path

from worldmodel.envs.doom import textures
from worldmodel.envs.doom.levels import KINDS, Level, Sector, Wall

MAP = "MAP01"

_SKILLS = "".join(f"skill{n}=true; " for n in range(1, 6)) + "single=true; "

# Without friction every tic starts from rest: a key moves the agent at once by the table's
# amount and letting go stops it at once. The engine then scales thrust down to 1/64, and
# 166.91 brings a full key press (50 of 50) back to 4 map units per tic.
_PLAYER = """
actor WmWalker : DoomPlayer
{
  Player.DisplayName "Walker"
  Friction 0
  Player.ForwardMove 166.91, 166.91
  Player.SideMove 166.91, 166.91
}
"""
_MAPINFO = 'gameinfo { playerclasses = "WmWalker" }\nmap MAP01 "level" { }\n'


def write_wad(level: Level, path: Path) -> None:
    """Write `level` with everything it needs to `path`."""
    lumps = [("DECORATE", _decorate().encode()), ("MAPINFO", _MAPINFO.encode())]
    lumps += [("TX_START", b""), *textures.lumps(), ("TX_END", b"")]
    lumps += [(MAP, b""), ("TEXTMAP", textmap(level).encode()), ("ENDMAP", b"")]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    header = b"PWAD" + struct.pack("<ii", len(lumps), 12 + len(body))
    path.write_bytes(header + body + directory)


def _decorate() -> str:
    blocks = [_PLAYER]
    for kind in KINDS:
        shine = " Bright" if kind.bright else ""
        recolour = f"  Translation {kind.translation}\n" if kind.translation else ""
        blocks.append(
            f"actor {kind.actor} {kind.number}\n{{\n  Radius {kind.radius}\n  Height 96\n"
            f"  Scale {kind.scale}\n  +SOLID\n{recolour}"
            f"  States\n  {{\n  Spawn:\n    {kind.sprite[:4]} {kind.sprite[4]} -1{shine}\n"
            "    Stop\n  }\n}\n"
        )
    return "\n".join(blocks)


def textmap(level: Level) -> str:
    """Return the level as UDMF text."""
    out = _TextMap()
    for sector in level.sectors:
        out.add_sector(sector)
    for owner, wall in level.solid:
        out.add_line(wall, owner, level.sectors[owner])
    for wall, front, back in level.openings:
        out.add_opening(wall, front, back, level.sectors)
    x, y, yaw = level.start
    out.add_thing(x, y, 1, yaw)
    for thing in level.things:
        out.add_thing(thing.x, thing.y, KINDS[thing.kind].number)
    return out.text()


class _TextMap:
    """Collects UDMF blocks, sharing vertices."""

    def __init__(self) -> None:
        self._blocks: list[str] = ['namespace = "zdoom";']
        self._vertices: dict[tuple[int, int], int] = {}
        self._sides = 0

    def text(self) -> str:
        vertices = [f"vertex {{ x={x}.0; y={y}.0; }}" for x, y in self._vertices]
        return "\n".join([self._blocks[0], *vertices, *self._blocks[1:]])

    def add_sector(self, s: Sector) -> None:
        _, floor, ceiling = textures.names(s.theme)
        self._blocks.append(
            f'sector {{ heightfloor=0; heightceiling={s.ceiling}; texturefloor="{floor}"; '
            f'textureceiling="{ceiling}"; lightlevel={s.light}; }}'
        )

    def add_line(self, wall: Wall, owner: int, sector: Sector) -> None:
        texture = textures.names(sector.theme)[0]
        side = self._add_side(f'sector={owner}; texturemiddle="{texture}";')
        self._add_linedef(wall, f"sidefront={side}; blocking=true;")

    def add_opening(
        self,
        wall: Wall,
        front: int,
        back: int,
        sectors: tuple[Sector, ...],
    ) -> None:
        sides = [
            self._add_side(f'sector={n}; texturetop="{textures.names(sectors[n].theme)[0]}";')
            for n in (front, back)
        ]
        self._add_linedef(wall, f"sidefront={sides[0]}; sideback={sides[1]}; twosided=true;")

    def add_thing(self, x: int, y: int, number: int, yaw: int = 0) -> None:
        self._blocks.append(f"thing {{ x={x}.0; y={y}.0; angle={yaw}; type={number}; {_SKILLS}}}")

    def _add_side(self, body: str) -> int:
        self._blocks.append(f"sidedef {{ {body} }}")
        self._sides += 1
        return self._sides - 1

    def _add_linedef(self, wall: Wall, body: str) -> None:
        v1, v2 = self._vertex(wall[0], wall[1]), self._vertex(wall[2], wall[3])
        self._blocks.append(f"linedef {{ v1={v1}; v2={v2}; {body} }}")

    def _vertex(self, x: int, y: int) -> int:
        return self._vertices.setdefault((x, y), len(self._vertices))
