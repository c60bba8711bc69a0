"""Our environments as Gymnasium ids. What they are made of is loaded by `gymnasium.make`."""

import gymnasium

IDS = {
    "worldmodel/Doom-v0": "worldmodel.envs.world_env:DoomEnv",
    "worldmodel/Dream-v0": "worldmodel.envs.dream_env:DreamEnv",
    "worldmodel/Crafter-v0": "worldmodel.envs.crafter_env:CrafterEnv",
}
BATCHED = {"worldmodel/Dream-v0": "worldmodel.envs.dream_env:DreamVectorEnv"}
"""What `gymnasium.make_vec` makes of an id, where several run faster together."""


def register() -> None:
    """Make `IDS` known to Gymnasium; a second call does nothing."""
    for name, place in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=place, vector_entry_point=BATCHED.get(name))
