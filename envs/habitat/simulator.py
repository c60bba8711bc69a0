"""The only file that speaks to habitat_sim: a scene that is open, walked through and looked at.

Much of what goes wrong in that library ends the process instead of raising (no navmesh, a second
simulator, a wrong GPU, no renderer), so it is checked here before.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.habitat import floor
from worldmodel.envs.habitat.config import NATIVE, HabitatConfig
from worldmodel.envs.scratch import Scratch
from worldmodel.errors import UserError

MISSING = (
    "World 'habitat' needs habitat-sim, which is not on the Python package index: "
    "conda install habitat-sim headless -c conda-forge -c aihabitat; or build it from its source, "
    "https://github.com/facebookresearch/habitat-sim (BUILD_FROM_SOURCE.md)."
)

_HEIGHT = 1.5  # metres of free height that the agent needs
_CELL = 0.05  # metres of a cell of the floor map
_MOVED = 1e-5  # the library's own tolerance, of squared metres
_STRUCTURE = {
    "", "wall", "floor", "ceiling", "misc", "object", "objects", "unknown", "undefined", "void",
    "unlabeled", "unlabelled", "remove",
}  # fmt: skip
# A renderer with image-based lighting spends minutes on it at every start in software. This file,
# in the working folder, is the one way to turn it off; images that do not exist end it at once.
_NO_IBL = {
    "enable_ibl": False,
    "ibl_blut_filename": "none.png",
    "ibl_envmap_filename": "none.hdr",
}
_PROBE = """
import sys, habitat_sim
config = habitat_sim.SimulatorConfiguration()
config.scene_id, config.gpu_device_id = "NONE", int(sys.argv[1])
sensor = habitat_sim.CameraSensorSpec()
sensor.uuid, sensor.sensor_type = "depth", habitat_sim.SensorType.DEPTH
agent = habitat_sim.agent.AgentConfiguration()
agent.sensor_specifications = [sensor]
habitat_sim.Simulator(habitat_sim.Configuration(config, [agent])).close()
"""

_live: "weakref.ref[Simulator] | None" = None


def load_library() -> Any:
    """Return the module habitat_sim, with its logs quiet and its software renderer unthreaded.

    Raises:
        UserError: it is missing, or a shared library that it needs.
    """
    # Without it the software renderer's threads stall under load. Read at the first simulator.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ.setdefault("MAGNUM_LOG", "quiet")
    os.environ.setdefault("HABITAT_SIM_LOG", "quiet")
    try:
        import habitat_sim  # pyright: ignore[reportMissingImports]
        import habitat_sim.errors  # pyright: ignore[reportMissingImports]
        import habitat_sim.metadata  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name == "habitat_sim":
            raise UserError(MISSING) from error
        raise UserError(f"habitat-sim needs a package ({error}): pip install it.") from error
    except ImportError as error:
        raise UserError(
            f"habitat-sim could not be loaded ({error}); its shared libraries on Debian: "
            "apt-get install libegl1 libopengl0 libgl1-mesa-dri."
        ) from error
    return habitat_sim


def check_renderer(gpu: int) -> None:
    """See that there is a device to draw with; where there is none the library ends the process.

    Raises:
        UserError: there is none, or it is not the one that is asked for.
    """
    if sys.platform.startswith("linux") and not _egl_devices():
        raise UserError(
            "habitat-sim finds no OpenGL device through EGL; for software rendering on Debian: "
            "apt-get install libegl1 libopengl0 libgl1-mesa-dri."
        )
    if gpu < 0:
        return
    run = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE, str(gpu)], capture_output=True, text=True, timeout=300
    )
    if run.returncode:
        says = [line for line in (run.stderr + run.stdout).splitlines() if "CUDA device" in line]
        why = says[-1].strip() if says else f"exit code {run.returncode}"
        raise UserError(
            f"habitat: there is no CUDA device gpu={gpu} to draw with ({why}); gpu=-1 takes the "
            "first device that EGL finds, a software one included."
        )


def _egl_devices() -> int:
    """Return how many devices EGL lists; 1 where it cannot say."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 1
    query = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


@dataclass(frozen=True)
class Thing:
    """Something that the semantic sensor sees: its name, and its middle in the simulator's axes."""

    name: str
    centre: tuple[float, float, float]


class Simulator:
    """A scene in the simulator, and an agent in it. One lives in a process at a time.

    Positions are the simulator's: float [3], y up; yaw is in degrees to the left of -z.

    Args:
        config: what is opened and how.
        scratch: a folder to work in.

    Raises:
        UserError: habitat-sim or a renderer is missing, or another simulator lives.
    """

    def __init__(self, config: HabitatConfig, scratch: Scratch) -> None:
        global _live
        self._library = load_library()
        check_renderer(config.gpu)
        if _live is not None and (other := _live()) is not None and other.is_open:
            raise UserError(
                "A process holds one Habitat world at a time: close the other one, or play it in "
                "a process of its own."
            )
        _live = weakref.ref(self)
        self._config, self._scratch = config, scratch
        self._sim: Any = None
        self._handles: dict[str, str] = {}  # of a dataset's scenes
        self._island = -1
        self._maps: dict[int, floor.FloorMap] = {}
        self.things: dict[int, Thing] = {}
        self.position, self.yaw = np.zeros(3, np.float32), 0.0
        if not config.ibl:
            _write(scratch.path / "data" / "default.pbr_config.json", _NO_IBL)

    @property
    def is_open(self) -> bool:
        """Whether a scene is open."""
        return self._sim is not None

    def dataset_scenes(self, dataset: str) -> tuple[str, ...]:
        """Return the names of a dataset's scenes in order.

        Raises:
            UserError: it cannot be read, or has none.
        """
        backend = self._library.SimulatorConfiguration()
        backend.scene_dataset_config_file = dataset
        try:
            with self._scratch.working():
                mediator = self._library.metadata.MetadataMediator(backend)
                handles = mediator.get_scene_handles() or (
                    mediator.stage_template_manager.get_file_template_handles()
                )
        except AssertionError as error:
            raise UserError(
                f"habitat: the dataset {dataset} could not be read ({_first(error)})."
            ) from error
        if not handles:
            raise UserError(f"habitat: the dataset {dataset} has no scenes.")
        self._handles = {Path(handle).name.split(".")[0]: handle for handle in handles}
        return tuple(sorted(self._handles))

    def open(self, scene: str) -> None:
        """Close what is open, and open a scene: a path, or a name in the dataset.

        Raises:
            UserError: it cannot be opened, or nobody can walk in it.
        """
        self.close()
        settings = self._settings(scene)
        try:
            with self._scratch.working():
                self._sim = self._library.Simulator(settings)
            self._prepare_navmesh(scene)
            self.things = self._find_things()
        except (AssertionError, RuntimeError) as error:
            self.close()
            raise UserError(
                f"habitat: the scene {scene} could not be opened ({_first(error)}); is the file "
                "whole?"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the scene."""
        if self._sim is not None:
            self._sim.close()
        self._sim, self._maps, self.things = None, {}, {}

    def _settings(self, scene: str) -> Any:
        library, config = self._library, self._config
        backend = library.SimulatorConfiguration()
        backend.gpu_device_id = config.gpu
        backend.allow_sliding = config.sliding
        if config.is_dataset:
            backend.scene_dataset_config_file = config.scene
        backend.scene_id = self._handles.get(scene, scene)
        if config.up != "auto" and not config.is_dataset:
            backend.scene_id = self._turned(scene)
        agent = library.agent.AgentConfiguration()
        agent.height, agent.radius = _HEIGHT, config.radius
        kinds = {"color": library.SensorType.COLOR, "semantic": library.SensorType.SEMANTIC}
        if config.depth:
            kinds["depth"] = library.SensorType.DEPTH
        agent.sensor_specifications = [self._camera(name, kind) for name, kind in kinds.items()]
        amounts = {"w": config.step, "a": config.turn, "d": config.turn}
        agent.action_space = {
            name: library.ActionSpec(name, library.ActuationSpec(amount=amounts[key]))
            for key, name in NATIVE.items()
        }
        return library.Configuration(backend, [agent])

    def _camera(self, name: str, kind: Any) -> Any:
        spec = self._library.CameraSensorSpec()
        spec.uuid, spec.sensor_type = name, kind
        spec.sensor_subtype = self._library.SensorSubType.PINHOLE
        spec.resolution = [self._config.pixels] * 2
        spec.position = [0.0, self._config.eye, 0.0]
        spec.hfov = self._config.hfov
        return spec

    def _turned(self, scene: str) -> str:
        """Return a description, in the scratch folder, that says which axis of a file is up."""
        path = Path(scene)
        front = [0, 0, -1] if self._config.up == "y" else [0, 1, 0]
        up = [0, 1, 0] if self._config.up == "y" else [0, 0, 1]
        stage: dict[str, Any] = {"render_asset": scene, "up": up, "front": front}
        if path.with_suffix(".navmesh").is_file():
            stage["nav_asset"] = str(path.with_suffix(".navmesh"))
        return str(_write(self._scratch.path / f"{path.stem}.stage_config.json", stage))

    def _prepare_navmesh(self, scene: str) -> None:
        """Load or compute the navmesh and choose the island; without one, queries crash."""
        finder, wanted = self._sim.pathfinder, self._config.navmesh
        if wanted and not finder.load_nav_mesh(wanted):
            raise UserError(f"habitat: the navmesh {wanted} could not be loaded.")
        if not finder.is_loaded:
            settings = self._library.NavMeshSettings()
            settings.set_defaults()
            settings.agent_radius, settings.agent_height = self._config.radius, _HEIGHT
            settings.include_static_objects = True
            if not self._sim.recompute_navmesh(finder, settings) or not finder.is_loaded:
                raise UserError(
                    f"habitat: nobody can walk in {scene}: no navmesh could be computed. Is its up "
                    f"axis right (up={self._config.up})?"
                )
        islands = range(finder.num_islands)
        areas = [float(finder.island_area(n)) for n in islands]
        heights = [float(np.median(self._triangles(n)[0][:, 1])) for n in islands]
        self._island = self._config.island
        if self._island < 0:
            self._island = floor.pick_island(areas, heights)
        if not 0 <= self._island < len(areas) or areas[self._island] <= 0:
            found = ", ".join(
                f"{n}: {a:.1f} m2 at {h:.1f} m"
                for n, (a, h) in enumerate(zip(areas, heights, strict=True))
            )
            raise UserError(
                f"habitat: there is no floor to stand on in {scene} (island={self._config.island}; "
                f"it has {found or 'none'})."
            )

    def _triangles(self, island: int) -> tuple[np.ndarray, np.ndarray]:
        finder = self._sim.pathfinder
        vertices = np.array([_triple(v) for v in finder.build_navmesh_vertices(island)], np.float32)
        indices = np.array(list(finder.build_navmesh_vertex_indices(island)), int)
        return vertices.reshape(-1, 3), indices.reshape(-1, 3)

    def _find_things(self) -> dict[int, Thing]:
        """Return what the scene's annotations and its objects call by name, by semantic id."""
        found: dict[int, Thing] = {}
        annotated = self._sim.semantic_scene
        for thing in annotated.objects if annotated is not None else ():
            if thing is None or thing.category is None:
                continue
            name = " ".join(thing.category.name().lower().replace("_", " ").split())
            centre = thing.aabb.center
            centre = centre() if callable(centre) else centre
            found[int(thing.semantic_id)] = Thing(name, _triple(centre))
        objects = self._sim.get_rigid_object_manager().get_objects_by_handle_substring("")
        for handle, thing in objects.items():
            if thing.semantic_id > 0:
                name = re.sub(r"_*:\d+$", "", Path(handle).name).replace("_", " ")
                found[int(thing.semantic_id)] = Thing(name, _triple(thing.translation))
        return {n: thing for n, thing in found.items() if thing.name not in _STRUCTURE}

    def places(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return points spread evenly over the floor, float32 [count or a few less, 3]."""
        points = floor.sample(*self._triangles(self._island), count, rng)
        snapped = np.array([self._snap(point) for point in points], np.float32)
        return snapped[np.isfinite(snapped).all(axis=1)]

    def path(self, goal: Any) -> np.ndarray:
        """Return the corners of the shortest path to where one can stand nearest to `goal`.

        Returns:
            float32 [N, 3], the first is the agent's place; N = 0 where there is no way.
        """
        end = self._snap(goal)
        if not np.isfinite(end).all():
            return np.zeros((0, 3), np.float32)
        path = self._library.ShortestPath()
        path.requested_start, path.requested_end = _vector(self.position), _vector(end)
        if not self._sim.pathfinder.find_path(path):
            return np.zeros((0, 3), np.float32)
        return np.array([_triple(point) for point in path.points], np.float32).reshape(-1, 3)

    def place(self, position: Any, yaw: float) -> None:
        """Put the agent somewhere."""
        self.position, self.yaw = np.asarray(position, np.float32), yaw % 360.0
        half = np.radians(self.yaw) / 2
        turned = np.array([0.0, np.sin(half), 0.0, np.cos(half)])  # x, y, z, w
        self._sim.get_agent(0).set_state(self._library.AgentState(self.position, turned))

    def move(self, ahead: float, left: float, turn: float) -> bool:
        """Walk to a point and turn; return whether something was in the way."""
        angle = np.radians(self.yaw)
        sin, cos = np.sin(angle), np.cos(angle)
        wanted = np.array([-ahead * sin - left * cos, 0.0, -ahead * cos + left * sin])
        end = np.array(
            self._sim.step_filter(_vector(self.position), _vector(self.position + wanted))
        )
        went = float(((np.array(end) - self.position) ** 2).sum())
        collided = went + _MOVED < float((wanted**2).sum())
        self.place(end, self.yaw + turn)
        return collided

    def act(self, name: str) -> bool:
        """Do one of the simulator's own actions; return whether something was in the way."""
        collided = bool(self._sim.get_agent(0).act(name))
        state = self._sim.get_agent(0).get_state()
        w, y = float(state.rotation.w), float(state.rotation.y)
        self.position = np.asarray(state.position, np.float32)
        self.yaw = float(np.degrees(2 * np.arctan2(y, w))) % 360.0
        return collided

    def look(self) -> dict[str, np.ndarray]:
        """Return the pictures: 'color' uint8 [P, P, 4], 'semantic' int [P, P], 'depth' metres."""
        seen = self._sim.get_sensor_observations()
        return {name: np.asarray(picture) for name, picture in seen.items()}

    def rays(self, count: int) -> np.ndarray:
        """Return the metres to what stops the agent, float32 [count], to the left from ahead."""
        level = round(float(self.position[1]) / 0.5)
        if level not in self._maps:
            self._maps[level] = self._map(float(self.position[1]))
        yaw = self.yaw + np.arange(count) * (360.0 / count)
        return self._maps[level].rays(float(self.position[0]), float(self.position[2]), yaw)

    def _map(self, height: float) -> floor.FloorMap:
        finder = self._sim.pathfinder
        low, high = (np.array(_triple(corner)) for corner in finder.get_bounds())
        start = np.minimum(low, high)
        islands = np.asarray(finder.get_topdown_island_view(_CELL, height))
        margin = self._config.radius
        return floor.FloorMap(islands == self._island, start[0], start[2], _CELL, margin)

    def _snap(self, point: Any) -> np.ndarray:
        snapped = self._sim.pathfinder.snap_point(_vector(point), self._island)
        return np.array(_triple(snapped), np.float32)


def _vector(point: Any) -> Any:
    # It comes with habitat_sim, whose functions refuse lists.
    import magnum  # pyright: ignore[reportMissingImports]

    return magnum.Vector3(*(float(value) for value in point))


def _triple(point: Any) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return path
