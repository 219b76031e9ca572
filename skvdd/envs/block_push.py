"""Block Push: bring two blocks into two targets; a goal says which into which."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from skvdd.envs._mujoco import mujoco
from skvdd.envs.blocks import Block, cube
from skvdd.envs.panda import Array
from skvdd.envs.spec import Score, TaskSpec, register_task
from skvdd.envs.task import Task

TICK = 0.002  # s, one step of the simulator
N_TICKS = 50  # in one control step
N_SETTLING_TICKS = 200  # after the blocks have been put down

START = (0.3, -0.4)  # m, of the rod
WORKSPACE = np.array([[0.15, -0.5], [0.70, 0.5]])  # m, lower and upper corner of the command
OVERSHOOT = 0.05  # m, how far the rod may be seen outside; in fact it stays much closer
ACTION_BOUND = 0.1  # m, declared and not enforced

BLOCK_HALF_SIZE = 0.02  # m
BLOCK_MASS = 0.01  # kg
BLOCK_CENTER = (0.4, -0.2)  # m, middle of where the blocks are put
BLOCK_SPREAD = (0.1, 0.15)  # m
BLOCK_MIN_GAP = 0.1  # m, in x
BLOCK_YAW = (1.0, math.pi)  # rad

TARGET_CENTER = (0.4, 0.2)  # m, middle between the two
TARGET_OFFSET = 0.12  # m, of each in x
TARGET_SPREAD = (0.005, 0.0075)  # m
TARGET_YAW_SPREAD = math.pi / 30.0  # rad, about pi
TOLERANCE = 0.05  # m, between the centers of a block and of the target that it is in

BEHAVIORS = ("block first", "block2 first")

# ---------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------

# The rod follows its command with a lag of LAG: stiffness and damping dominate the mass.
STIFFNESS = 1.0e4  # N / m
LAG = 0.04  # s

# MuJoCo's friction lifts what slides, the more the larger the coefficient, so that light blocks
# hit at 0.8 m/s hop and tumble. The same friction from a larger weight leaves them on the ground.
FRICTION = 1.0  # of the blocks on the ground
WEIGHT = 20.0  # in units of the true one
GRAVITY = 9.8  # m / s^2
ROD_FRICTION = 0.5  # of the blocks on the rod
CONTACT_TIME = 0.01  # s; much shorter or longer, and the blocks bounce off the rod

WORLD = f"""
<asset>
  <texture name="sky" type="skybox" builtin="flat" rgb1="0.26 0.58 0.51" width="8" height="48"/>
  <material name="shell" rgba="0.95 0.95 0.96 1" specular="0.4" shininess="0.6"/>
  <material name="trim" rgba="0.22 0.23 0.26 1" specular="0.3" shininess="0.4"/>
  <material name="steel" rgba="0.55 0.57 0.6 1" specular="0.8" shininess="0.8"/>
</asset>
<default>
  <geom solref="{CONTACT_TIME} 1"/>
  <default class="drawn"><geom contype="0" conaffinity="0" mass="0" material="shell"/></default>
</default>
<worldbody>
  <light name="top" type="directional" pos="0 0 1.3" dir="0.1 0.15 -1" diffuse="0.6 0.6 0.6"
    specular="0.1 0.1 0.1" castshadow="false"/>
  <geom name="ground" type="plane" size="0 0 0.1" rgba="0.8 0.655 0.45 1" priority="1"
    friction="{FRICTION / WEIGHT}"/>
  <geom name="sheet" class="drawn" type="box" pos="0.35 0 0" size="0.25 0.5 0.0004"
    rgba="0.3 0.31 0.33 1" material=""/>
  <camera name="agent" pos="1 0 0.75" xyaxes="0 1 0 -0.75 0 0.66" fovy="56"/>
  <camera name="view" pos="1.21 0.64 0.76" xyaxes="-0.6 0.92 0 -0.71 -0.46 1.21" fovy="45"/>
</worldbody>
"""

# A carriage on a rail along y, and through it a beam along x that holds the rod.
ROBOT = f"""
<geom class="drawn" type="box" pos="0 0 0.1" size="0.02 0.62 0.012" material="steel"/>
<geom class="drawn" type="box" pos="0 0.6 0.045" size="0.03 0.03 0.045" material="trim"/>
<geom class="drawn" type="box" pos="0 -0.6 0.045" size="0.03 0.03 0.045" material="trim"/>
<body name="carriage">
  <joint name="y" type="slide" axis="0 1 0"/>
  <geom class="drawn" type="box" pos="0 0 0.145" size="0.045 0.04 0.035" material="trim"/>
  <inertial pos="0 0 0.15" mass="0.5" diaginertia="0.001 0.001 0.001"/>
  <body name="beam">
    <joint name="x" type="slide" axis="1 0 0"/>
    <inertial pos="0 0 0.15" mass="0.5" diaginertia="0.001 0.001 0.001"/>
    <geom class="drawn" type="box" pos="-0.375 0 0.155" size="0.375 0.014 0.014"/>
    <geom class="drawn" type="cylinder" pos="0 0 0.15" size="0.022 0.03"/>
    <geom class="drawn" type="cylinder" pos="0 0 0.116" size="0.014 0.005" material="trim"/>
    <geom name="rod" type="capsule" fromto="0 0 0.01 0 0 0.12" size="0.005" material="steel"
      priority="1" friction="{ROD_FRICTION}"/>
    <geom class="drawn" type="sphere" pos="0 0 0.01" size="0.0052" rgba="1 0 0 1" material=""/>
    <site name="rod" pos="0 0 0.02" size="0.004" group="5"/>
  </body>
</body>
"""

ACTUATORS = f"""
<actuator>
  <position name="x" joint="x" kp="{STIFFNESS}" kv="{LAG * STIFFNESS}"/>
  <position name="y" joint="y" kp="{STIFFNESS}" kv="{LAG * STIFFNESS}"/>
</actuator>
"""


def outline(name: str, rgba: str) -> str:
    """Return a square outline on the ground that stands where it is put, as MJCF."""
    inner, width, height = 0.054, 0.003, 0.0008  # m: half the opening; halves of a bar
    middle, length = inner + width, inner + 2.0 * width
    bars = [(s * middle, 0.0, width, length) for s in (-1, 1)]
    bars += [(0.0, s * middle, inner, width) for s in (-1, 1)]
    geoms = "".join(
        f'<geom class="drawn" type="box" pos="{x} {y} 0" size="{a} {b} {height}" rgba="{rgba}" '
        'material=""/>'
        for x, y, a, b in bars
    )
    return f'<body name="{name}" mocap="true">{geoms}</body>'


def build_model() -> mujoco.MjModel:
    """Compile rod, blocks and targets."""
    red, green = "1 0.3412 0.349 1", "0.3412 1 0.349 1"
    blocks = cube("block", BLOCK_HALF_SIZE, BLOCK_MASS, red) + cube(
        "block2", BLOCK_HALF_SIZE, BLOCK_MASS, green
    )
    targets = outline("target", green) + outline("target2", red)
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco model="skvdd">
          <compiler angle="radian" autolimits="true"/>
          <option timestep="{TICK}" cone="elliptic" integrator="implicitfast"
            gravity="0 0 {-WEIGHT * GRAVITY}">
            <flag sleep="enable"/>
          </option>
          <visual>
            <global offwidth="1024" offheight="1024"/>
            <headlight ambient="0.3 0.3 0.3" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
          </visual>
          {WORLD}<worldbody>{ROBOT}{blocks}{targets}</worldbody>{ACTUATORS}
        </mujoco>""")


# ---------------------------------------------------------------------------------------
# The task
# ---------------------------------------------------------------------------------------


class BlockPush(Task):
    r"""Push two blocks into two targets; the goal says which block into which.

    A rod moves in the plane, just above the ground, and pushes two cubes, one red and one green,
    into two square targets. Either block may come first, so there are two ways to reach a goal.
    The task, its distributions and its score are those of the multimodal Block Push of
    Behavior Transformers [1]_ with the goals of BESO [2]_ and the score of VDD [3]_; there an
    xArm holds the rod, here a carriage and a beam do, and MuJoCo takes PyBullet's place.

    **Action**, one every 100 ms (10 Hz):

    === ============================== ======== ======= =====
    No. meaning                        minimum  maximum unit
    === ============================== ======== ======= =====
    0   change of the commanded x      -0.1     0.1     m
    1   change of the commanded y      -0.1     0.1     m
    === ============================== ======== ======= =====

    The declared bounds are not enforced, as in the original; its demonstrations keep to 0.035 m.
    The command is kept within 0.15 m ≤ x ≤ 0.70 m and -0.5 m ≤ y ≤ 0.5 m; the rod follows it with
    a lag of 40 ms. An action that is not finite raises `ValueError`.

    **Observation**, float64, of the state after the action has taken effect:

    ====== ======================================================= =====
    No.    meaning                                                 unit
    ====== ======================================================= =====
    0, 1   x and y of block (red)                                  m
    2      yaw of block, in (-π, π]                                rad
    3, 4   x and y of block2 (green)                               m
    5      yaw of block2, in (-π, π]                               rad
    6, 7   measured x and y of the rod                             m
    8, 9   commanded x and y of the rod                            m
    ====== ======================================================= =====

    **Goal**: ``info["goal"]``, from `reset` on, are the x and y where block shall be and the x
    and y where block2 shall be, m: the centers of the targets, as they are assigned. The targets
    cannot be told from the observation; a policy with ``goal_dim=4`` is given the goal.

    **Score**: a block is *in* a target while their centers are less than 0.05 m apart, seen from
    above. The first time a block is seen in a target at the end of a control step, the two are a
    completed pair, and remain one. ``info["score"]`` is half the number of completed pairs that
    the assignment wants: 0, 0.5 or 1.

    **Reward**: the increase of the score, so that the return is the score.

    **Success**: both blocks are in the targets that the assignment wants. The score is 1 then.

    **Behavior**: of a success, which of the two wanted pairs was completed first,
    ``"block first"`` or ``"block2 first"``; where one control step completed both,
    ``"block first"``. Otherwise None.

    **Context** and its distribution, each number uniform between its bounds:

    ====== ================================== ====================== ====================== =====
    No.    meaning                            minimum                maximum                unit
    ====== ================================== ====================== ====================== =====
    0, 3   x of block, of block2              0.3                    0.5                    m
    1, 4   y of block, of block2              -0.35                  -0.05                  m
    2, 5   yaw of block, of block2            1                      π                      rad
    6      x of target (green)                0.4 ± 0.12 - 0.005     0.4 ± 0.12 + 0.005     m
    9      x of target2 (red)                 0.4 ∓ 0.12 - 0.005     0.4 ∓ 0.12 + 0.005     m
    7, 10  y of target, of target2            0.1925                 0.2075                 m
    8, 11  yaw of target, of target2          29 π / 30              31 π / 30              rad
    12     assignment: 0 wants block in       0                      1                      bool
           target and block2 in target2, 1
           block in target2 and block2 in
           target
    ====== ================================== ====================== ====================== =====

    The positions of the blocks are drawn again until their x are more than 0.1 m apart. The sign
    of ± is drawn too, so there are two layouts and four configurations of goals. The colors of
    the targets pair nothing.

    **Start**: the rod at (0.3, -0.4) m and all at rest.

    **Episode end**: the blocks are in different targets, wanted or not, or 299 steps
    (``TimeLimit``).

    Parameters
    ----------
    render_mode : {"rgb_array"} or None, default=None
        Whether `render` returns pictures.
    width, height : int, default=480
        Size of a picture in pixels, at most 1024.
    camera : {"view", "agent"}, default="view"
        Which camera `render` uses.

    Notes
    -----
    The blocks measure 0.04 m and weigh 0.01 kg; their coefficient of friction on the ground is 1.
    What they feel is twenty times the gravity and a twentieth of that coefficient. Sliding
    friction is the same, but MuJoCo's friction cones lift what slides the more the larger the
    coefficient is, and blocks hit at 0.8 m/s would tumble.

    Version history:

    - v0: first version.

    References
    ----------
    .. [1] N. M. M. Shafiullah et al., "Behavior Transformers: Cloning k modes with one stone",
       NeurIPS 2022; the environment extends that of P. Florence et al., "Implicit Behavioral
       Cloning", CoRL 2021.
    .. [2] M. Reuss et al., "Goal-Conditioned Imitation Learning using Score-based Diffusion
       Policies", RSS 2023.
    .. [3] H. Zhou et al., "Variational Distillation of Diffusion Policies into Mixture of
       Experts", NeurIPS 2024.

    Examples
    --------
    >>> import gymnasium
    >>> import skvdd.envs
    >>> env = gymnasium.make("skvdd/BlockPush-v0")
    >>> observation, info = env.reset(options={"context": 0})
    >>> observation[6:].tolist()
    [0.3, -0.4, 0.3, -0.4]
    >>> env.step([0.03, 0.0])[0][6:].round(3).tolist()
    [0.328, -0.4, 0.33, -0.4]
    >>> env.close()
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    context_size = 13

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        super().__init__(render_mode, width, height, camera)
        model = self.model()
        self.action_space = Box(-ACTION_BOUND, ACTION_BOUND, (2,), np.float64)
        self.observation_space = _observation_space()
        self._blocks = [Block(model, self.data, name) for name in ("block", "block2")]
        self._targets = [model.body(name).mocapid[0] for name in ("target", "target2")]
        self._axes = [model.joint(name).qposadr[0] for name in ("x", "y")]
        self._rod = self.data.site_xpos[model.site("rod").id]
        self._command: Array | None = None

    @classmethod
    @cache
    def model(cls) -> mujoco.MjModel:
        """Return the model that all environments of this task share."""
        return build_model()

    # -- what can be asked ----------------------------------------------------------------

    @property
    def command(self) -> Array:
        """Commanded position of the rod, m, (2,)."""
        if self._command is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step() and before command.")
        return self._command.copy()

    @property
    def rod_position(self) -> Array:
        """Measured position of the rod after the last step, m, (2,)."""
        return self._rod[:2].copy()

    @property
    def block_positions(self) -> Array:
        """Positions of block and block2 after the last step, m, (2, 2)."""
        return np.array([block.position[:2] for block in self._blocks])

    @property
    def goal(self) -> Array:
        """Where block and block2 shall be, m, (2, 2)."""
        return self._target_positions[list(self._wanted)]

    @property
    def score(self) -> float:
        """Half the number of completed pairs that are wanted: 0, 0.5 or 1."""
        return 0.5 * len(self._wanted_and_completed())

    # -- an episode -----------------------------------------------------------------------

    @classmethod
    def draw_context(cls, rng: np.random.Generator) -> Array:
        """Draw the poses of blocks and targets and the assignment.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.

        Returns
        -------
        ndarray of shape (13,)
            The context.
        """
        poses = np.empty((4, 3))
        poses[:2, :2] = _draw_apart(rng)
        poses[:2, 2] = rng.uniform(*BLOCK_YAW, 2)
        offset = rng.choice([-TARGET_OFFSET, TARGET_OFFSET])
        poses[2:, :2] = TARGET_CENTER + rng.uniform(-1.0, 1.0, (2, 2)) * TARGET_SPREAD
        poses[2:, 0] += offset, -offset
        poses[2:, 2] = math.pi + TARGET_YAW_SPREAD * rng.uniform(-1.0, 1.0, 2)
        return np.append(poses, rng.integers(2))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode.

        Parameters
        ----------
        seed : int or None, default=None
            Seed of the task's own draws, as everywhere in Gymnasium.
        options : dict or None, default=None
            ``{"context": i}`` starts in the i-th context of the test list (`listed_context`),
            ``{"context": i, "split": "train"}`` in one of the train list, ``{"context": array}``
            in the context given. Without, one is drawn.

        Returns
        -------
        observation : ndarray of shape (10,)
            First observation.
        info : dict
            ``success``, ``behavior``, ``score`` and ``goal``.
        """
        super().reset(seed=seed)
        self._context = self._choose_context(options)
        self._begin(self._context)
        return self._observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the command, let 100 ms pass, observe.

        Parameters
        ----------
        action : array-like of shape (2,)
            Change of the command, m.

        Returns
        -------
        observation : ndarray of shape (10,)
            The state after the 100 ms.
        reward : float
            Increase of the score.
        terminated, truncated : bool
            Whether the episode is over; time limits are Gymnasium's ``TimeLimit``.
        info : dict
            ``success``, ``behavior``, ``score`` and ``goal``.
        """
        wanted = self.command + self._check_action(action)
        self._command = np.clip(wanted, *WORKSPACE)
        self.data.ctrl[:] = self._command
        mujoco.mj_step(self.model(), self.data, N_TICKS)
        score = self.score
        terminated = self._keep_books()
        return self._observe(), self.score - score, terminated, False, self._info()

    def _choose_context(self, options: dict[str, Any] | None) -> Array:
        context = super()._choose_context(options)
        if context[-1] not in (0.0, 1.0):
            raise ValueError(
                "context must end with the assignment, 0 (block to target) or 1 (block to "
                f"target2), got {context[-1]}."
            )
        return context

    def _begin(self, context: Array) -> None:
        poses, crossed = context[:-1].reshape(4, 3), bool(context[-1])
        self._target_positions = poses[2:, :2]
        self._wanted = (1, 0) if crossed else (0, 1)  # number of each block's target
        self._completed: list[tuple[int, int]] = []  # numbers of block and target
        self._success = False
        self._command = np.array(START)
        self._place(poses)
        mujoco.mj_step(self.model(), self.data, N_SETTLING_TICKS)

    def _place(self, poses: Array) -> None:
        """Put the rod at its start, and blocks and targets at x, y, yaw."""
        mujoco.mj_resetData(self.model(), self.data)
        self.data.qpos[self._axes] = START
        self.data.ctrl[:] = START
        for block, (x, y, yaw) in zip(self._blocks, poses[:2], strict=True):
            block.place(x, y, BLOCK_HALF_SIZE, yaw)
        for target, (x, y, yaw) in zip(self._targets, poses[2:], strict=True):
            self.data.mocap_pos[target] = x, y, 0.0
            self.data.mocap_quat[target] = math.cos(yaw / 2.0), 0.0, 0.0, math.sin(yaw / 2.0)

    def _keep_books(self) -> bool:
        """Note completed pairs and success; say whether the blocks are in different targets."""
        shifts = self.block_positions[:, None] - self._target_positions[None, :]
        inside = np.linalg.norm(shifts, axis=2) < TOLERANCE  # block, target
        for block, target in np.argwhere(inside).tolist():
            if (block, target) not in self._completed:
                self._completed.append((block, target))
        self._success = bool(inside[(0, 1), self._wanted].all())
        return bool(inside.diagonal().all() or inside[::-1].diagonal().all())

    def _wanted_and_completed(self) -> list[int]:
        """Return the blocks of the wanted pairs, in the order in which they were completed."""
        return [block for block, target in self._completed if target == self._wanted[block]]

    def _observe(self) -> Array:
        poses = [value for b in self._blocks for value in (*b.position[:2], b.yaw)]
        return np.array([*poses, *self._rod[:2], *self.command])

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "behavior": BEHAVIORS[self._wanted_and_completed()[0]] if self._success else None,
            "score": self.score,
            "goal": self.goal.ravel().tolist(),
        }


def _draw_apart(rng: np.random.Generator) -> Array:
    """Draw the positions of the blocks, m, (2, 2)."""
    while True:
        positions = BLOCK_CENTER + rng.uniform(-1.0, 1.0, (2, 2)) * BLOCK_SPREAD
        if abs(positions[0, 0] - positions[1, 0]) > BLOCK_MIN_GAP:
            return positions


def _observation_space() -> gymnasium.Space[Array]:
    """Return the bounds: blocks go wherever they are pushed, the rod stays in the workspace."""
    pose = [math.inf, math.inf, math.pi]
    lower, upper = WORKSPACE
    low = np.concatenate([-np.array(2 * pose), lower - OVERSHOOT, lower])
    high = np.concatenate([2 * pose, upper + OVERSHOOT, upper])
    return Box(low, high, dtype=np.float64)


def selection(evaluation: Any) -> float:
    """Select by the mean return: half a point for each block that is home."""
    return float(evaluation.mean_return)


TASK = register_task(
    TaskSpec(
        name="blockpush",
        env_id="skvdd/BlockPush-v0",
        entry_point="skvdd.envs.block_push:BlockPush",
        time_limit=299,
        scores=(Score(behaviors={behavior: behavior for behavior in BEHAVIORS}),),
        n_contexts=25,
        selection=selection,
        headline="mean_return",
        demonstrators={"blockpush": "skvdd.datasets.experts.block_push:DEMONSTRATOR"},
        features="skvdd.datasets.features:block_push_features",
        goal_dim=4,
        states=(
            *("block x", "block y", "block yaw", "block2 x", "block2 y", "block2 yaw"),
            *("measured x", "measured y", "commanded x", "commanded y"),
        ),
        actions=("change of commanded x", "change of commanded y"),
        metadata={"units": "m, rad", "control_period": 0.1},
    )
)
