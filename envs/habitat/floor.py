"""Where one can walk, worked out from a navmesh with numpy: islands, places, walls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAR = 20.0  # metres that a ray reaches

_LARGE = 0.2  # share of the largest island's area from which an island counts as a floor


def pick_island(areas: Sequence[float], heights: Sequence[float]) -> int:
    """Return the lowest of the large islands, -1 where there is none.

    A navmesh also covers roofs, which may be larger than the floor, and the tops of furniture.
    """
    large = [n for n, area in enumerate(areas) if area > 0 and area >= _LARGE * max(areas)]
    return min(large, key=lambda n: (round(heights[n], 1), -areas[n]), default=-1)


def sample(
    vertices: np.ndarray, triangles: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return points spread evenly over triangles, float [count, 3].

    Args:
        vertices: float [V, 3].
        triangles: int [F, 3], indices into the vertices.
        count: how many points.
        rng: what they are drawn with.
    """
    corners = vertices[triangles]
    sides = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    picked = rng.choice(len(area), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    return corners[picked, 0] + u * sides[picked, 0] + v * sides[picked, 1]


@dataclass(frozen=True)
class FloorMap:
    """The free cells of a floor, in the simulator's axes.

    Attributes:
        free: bool [Z, X]. x, z: where cell [0, 0] is, in metres. cell: width of a cell.
        margin: metres from the edge of what is free to the wall, the agent's radius.
    """

    free: np.ndarray
    x: float
    z: float
    cell: float
    margin: float

    def rays(self, x: float, z: float, yaw: np.ndarray) -> np.ndarray:
        """Return the metres to what stops the agent in each direction, float32, as `yaw`.

        Args:
            x: where the rays begin, in metres.
            z: the same.
            yaw: degrees to the left of -z.
        """
        reach = np.arange(self.cell / 2, FAR, self.cell / 2)
        angle = np.radians(yaw)[:, None]
        columns = np.floor((x - np.sin(angle) * reach - self.x) / self.cell + 0.5).astype(int)
        rows = np.floor((z - np.cos(angle) * reach - self.z) / self.cell + 0.5).astype(int)
        inside = (rows >= 0) & (columns >= 0)
        inside &= (rows < self.free.shape[0]) & (columns < self.free.shape[1])
        free = np.zeros(rows.shape, bool)
        free[inside] = self.free[rows[inside], columns[inside]]
        free[:, reach < 2 * self.cell] = True  # the agent stands here, on the edge perhaps
        blocked = ~np.concatenate([free, np.zeros((len(free), 1), bool)], axis=1)
        first = blocked.argmax(axis=1)
        metres = np.append(reach, FAR)[first] + np.where(first < len(reach), self.margin, 0.0)
        return np.minimum(metres, FAR).astype(np.float32)
