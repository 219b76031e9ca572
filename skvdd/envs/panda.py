"""The Franka Panda of the robot tasks: its model, and D3IL's Cartesian controller."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvdd.envs._mujoco import mujoco

Array = NDArray[np.float64]

# ---------------------------------------------------------------------------------------
# Constants of the robot and of its controller
# ---------------------------------------------------------------------------------------

N_JOINTS = 7
TICK = 0.001  # s, one step of the simulator

REST_JOINTS = np.array([0.0, 0.174, 0.0, -0.872, 0.0, 1.222, 0.785])  # rad
JOINT_MIN = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])  # rad
JOINT_MAX = np.array([2.8973, 1.7628, 2.0, -0.0698, 2.8973, 3.7525, 2.8973])  # rad

STIFFNESS = np.array([120.0, 120.0, 120.0, 120.0, 50.0, 30.0, 10.0])  # N m / rad
DAMPING = np.array([10.0, 10.0, 10.0, 10.0, 6.0, 5.0, 3.0])  # N m s / rad

# Three iterations of gain 0.2 per tick leave this part of the reference's distance.
REFERENCE_DECAY = (1.0 - 0.2) ** 3

IK_ITERATIONS = 2
IK_DAMPING = 0.02  # damping of the least squares, in the units of the Jacobian
IK_MAX_SHIFT = 0.1  # m, position error used by one iteration
IK_MAX_TURN = 9.0 * 0.035  # rad, the reference moves at most at 9 rad/s
NULL_SPACE_GAIN = 0.76
NULL_SPACE_CLIP = 0.2  # rad
_NO_PULL = np.zeros(N_JOINTS)

# The set-points of a tool that points down, in the base frame (see `clip_to_reach`).
REACH_MIN_X = 0.25  # m
SHOULDER_HEIGHT = 0.333  # m
WRIST_HEIGHT = 0.212  # m, of the wrist above the tool center point
WRIST_OFFSET = 0.088  # m, of the tool center point outside the wrist
WRIST_REACH = 0.71  # m, of the wrist from the shoulder; the straight arm measures 0.719
# Higher or lower, no point is as far as REACH_MIN_X from the base and within WRIST_REACH.
_MAX_RISE = math.sqrt(WRIST_REACH**2 - (REACH_MIN_X - WRIST_OFFSET) ** 2)
MIN_HEIGHT = SHOULDER_HEIGHT - WRIST_HEIGHT - _MAX_RISE  # m
MAX_HEIGHT = SHOULDER_HEIGHT - WRIST_HEIGHT + _MAX_RISE  # m

# ---------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------

DEFAULTS = """
<default>
  <default class="panda">
    <joint axis="0 0 1" actuatorgravcomp="true"/>
    <geom contype="0" conaffinity="0" group="1" material="shell"/>
    <default class="trim"><geom type="cylinder" material="trim"/></default>
    <default class="bar"><geom type="capsule"/></default>
  </default>
  <default class="frame">
    <geom type="box" contype="0" conaffinity="0" rgba="0.9 0.9 0.9 1"/>
  </default>
</default>
<asset>
  <material name="shell" rgba="0.95 0.95 0.96 1" specular="0.4" shininess="0.6"/>
  <material name="trim" rgba="0.22 0.23 0.26 1" specular="0.3" shininess="0.4"/>
  <material name="steel" rgba="0.55 0.57 0.6 1" specular="0.8" shininess="0.8"/>
</asset>
"""

# Joint placements and inertias are the published ones; the drawn shapes are our own.
# The last body lumps flange, hand, fingers and rod; its large inertia is D3IL's.
ARM = """
<body name="link0" childclass="panda">
  <geom class="bar" fromto="-0.09 0 0.055 0 0 0.06" size="0.065"/>
  <geom class="trim" fromto="0 0 0.0 0 0 0.015" size="0.095"/>
  <geom class="trim" fromto="0 0 0.12 0 0 0.145" size="0.0625"/>
  <geom type="cylinder" fromto="0 0 0.01 0 0 0.12" size="0.068"/>
  <body name="link1" pos="0 0 0.333" gravcomp="1">
    <inertial mass="2.77281" pos="1.1399e-05 -0.0312655 -0.0693733"
      diaginertia="0.0164224 0.0153969 0.00546286"
      quat="0.98466 0.174481 -0.000101815 0.000347662"/>
    <joint name="joint1" range="-2.9671 2.9671" actuatorfrcrange="-87 87"/>
    <geom class="bar" fromto="0 0 -0.15 0 0 -0.02" size="0.062"/>
    <geom class="bar" fromto="0 -0.05 0 0 0.03 0" size="0.062"/>
    <body name="link2" quat="1 -1 0 0" gravcomp="1">
      <inertial mass="2.7996" pos="-1.31766e-05 -0.0703216 0.0311782"
        diaginertia="0.016787 0.0157415 0.00553027"
        quat="0.57484 0.818266 -6.05764e-05 -6.61626e-05"/>
      <joint name="joint2" range="-1.8326 1.8326" actuatorfrcrange="-87 87"/>
      <geom class="bar" fromto="0 0 0 0 -0.13 0" size="0.061"/>
      <geom class="trim" fromto="0 0 -0.1 0 0 0.1" size="0.05"/>
      <body name="link3" pos="0 -0.316 0" quat="1 1 0 0" gravcomp="1">
        <inertial mass="2.14603" pos="0.0443483 0.0249283 -0.03813"
          diaginertia="0.00915257 0.00896477 0.00384742"
          quat="0.0615263 0.349824 0.234291 0.904956"/>
        <joint name="joint3" range="-2.9671 2.9671" actuatorfrcrange="-87 87"/>
        <geom class="trim" fromto="0 0 -0.19 0 0 -0.18" size="0.062"/>
        <geom class="bar" fromto="0 0 -0.13 0 0 -0.07" size="0.06"/>
        <geom class="bar" fromto="0 0 -0.06 0.075 0 0" size="0.056"/>
        <body name="link4" pos="0.0825 0 0" quat="1 1 0 0" gravcomp="1">
          <inertial mass="2.18807" pos="-0.0385503 0.0395256 0.0247162"
            diaginertia="0.00946899 0.00928491 0.00396694"
            quat="0.813566 0.465041 0.309792 0.160858"/>
          <joint name="joint4" range="-3.1416 0.0873" actuatorfrcrange="-87 87"/>
          <geom class="trim" fromto="0 0 -0.095 0 0 0.095" size="0.046"/>
          <geom class="bar" fromto="0 0 0 -0.0825 0.075 0" size="0.055"/>
          <body name="link5" pos="-0.0825 0.384 0" quat="1 -1 0 0" gravcomp="1">
            <inertial mass="3.19545" pos="-6.36776e-05 0.0384124 -0.10997"
              diaginertia="0.0278873 0.0268823 0.00569569"
              quat="0.990767 -0.135571 0.000963106 0.000694406"/>
            <joint name="joint5" range="-2.9671 2.9671" actuatorfrcrange="-12 12"/>
            <geom class="trim" fromto="0 0 -0.262 0 0 -0.252" size="0.058"/>
            <geom class="bar" fromto="0 0 -0.215 0 0.015 -0.17" size="0.054"/>
            <geom class="bar" fromto="0 0.045 -0.17 0 0.06 -0.03" size="0.036"/>
            <geom class="bar" fromto="0 0.04 0 0 -0.03 0" size="0.05"/>
            <body name="link6" quat="1 1 0 0" gravcomp="1">
              <inertial mass="1.35761" pos="0.0510023 0.00693267 0.00616899"
                diaginertia="0.00412168 0.0033698 0.00213304"
                quat="-0.0460841 0.754362 0.044494 0.653325"/>
              <joint name="joint6" range="-0.0873 3.8223" actuatorfrcrange="-12 12"/>
              <geom class="trim" fromto="0 0 -0.08 0 0 0.08" size="0.04"/>
              <geom class="bar" fromto="0.01 0 0 0.08 0 0" size="0.046"/>
              <geom class="bar" fromto="0.088 -0.01 0 0.088 0.03 0" size="0.046"/>
              <body name="link7" pos="0.088 0 0" quat="1 1 0 0" gravcomp="1">
                <inertial mass="0.417345" pos="0.0103614 0.0103596 0.0791078"
                  diaginertia="0.000637671 0.000528056 0.000279577"
                  quat="0.63547 0.278021 -0.670462 0.263369"/>
                <joint name="joint7" range="-2.9671 2.9671" actuatorfrcrange="-12 12"/>
                <geom type="cylinder" fromto="0 0 0.05 0 0 0.1" size="0.044"/>
                <geom class="trim" fromto="0 0 0.098 0 0 0.107" size="0.045"/>
                <body name="hand" pos="0 0 0.107" quat="0.9238795325 0 0 -0.3826834324"
                  gravcomp="1">
                  <inertial mass="0.93" pos="0 0 0.04" diaginertia="0.126 0.126 0.123"/>
                  <geom class="bar" fromto="0 -0.075 0.03 0 0.075 0.03" size="0.032"/>
                  <geom class="trim" fromto="0 -0.085 0.055 0 0.085 0.055" size="0.015"/>
                  <geom type="box" pos="0 0.05 0.085" size="0.009 0.009 0.027" material="trim"/>
                  <geom type="box" pos="0 -0.05 0.085" size="0.009 0.009 0.027" material="trim"/>
                  <geom name="rod" type="cylinder" pos="0 0 0.075" size="0.01 0.15"
                    contype="1" conaffinity="1" material="steel"/>
                  <geom type="sphere" pos="0 0 0.225" size="0.0101" rgba="1 0 0 1" material=""/>
                  <site name="tcp" pos="0 0 0.105" size="0.004" group="5"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>
"""

# Under the thin plate of the table lies an invisible block, which stops what falls on it.
WORLD = """
<asset>
  <texture name="sky" type="skybox" builtin="flat" rgb1="0.26 0.58 0.51" width="8" height="48"/>
</asset>
<worldbody>
  <light name="top" type="directional" pos="0 0 1.3" dir="0 0 -1" diffuse="0.6 0.6 0.6"
    specular="0.1 0.1 0.1" castshadow="false"/>
  <geom name="floor" type="plane" pos="0 0 -0.94" size="10 10 0.1" rgba="0.26 0.58 0.51 1"
    contype="0" conaffinity="0"/>
  <geom name="table" type="box" pos="0.4 0 -0.02" size="0.49 0.98 0.001"
    rgba="0.8 0.655 0.45 1" contype="7" conaffinity="7" solref="0.002 1"
    solimp="0.999 0.999 0.001"/>
  <geom name="support" type="box" pos="0.4 0 -0.42" size="0.49 0.98 0.4" rgba="0 0 0 0"
    solref="0.002 1" solimp="0.999 0.999 0.001"/>
  <camera name="agent" pos="1.05 0 1.2" quat="0.683 0.183 0.183 0.683" fovy="45"/>
  <camera name="view" pos="1.5 0.74 0.9" xyaxes="-0.52 0.854 0 -0.36 -0.22 0.907" fovy="45"/>
</worldbody>
"""

# The aluminium frame under the table: two bars along x, two along y, four legs.
FRAME = "".join(
    f'<geom class="frame" pos="{x} {y} {z}" size="{size}"/>'
    for x, y, z, size in (
        *((0.4, y, -0.041, "0.49 0.02 0.02") for y in (-0.96, 0.96)),
        *((x, 0.0, -0.041, "0.02 0.94 0.02") for x in (-0.07, 0.87)),
        *((x, y, -0.5, "0.02 0.02 0.44") for x in (-0.07, 0.87) for y in (-0.96, 0.96)),
    )
)


def actuators() -> str:
    r"""Return the two actuators per joint that make D3IL's tracking law, as MJCF.

    The law is :math:`K_p (r_t - q) + K_d (\dot r_t - \dot q)` with the reference
    :math:`r_t = q^* + \lambda (r_{t-1} - q^*)`, :math:`\lambda = 0.512`, and its finite
    difference :math:`\dot r_t = (r_t - r_{t-1}) / \Delta`. Sorted by what MuJoCo knows,
    that is a filtered actuator whose activation is :math:`r_{t-1}`, and a direct one:

    .. math::
        [\lambda K_p - \kappa K_d]\, r_{t-1} - K_p q - K_d \dot q
        \;+\; [(1 - \lambda) K_p + \kappa K_d]\, q^*, \qquad \kappa = (1 - \lambda) / \Delta .

    Both are driven by the joint set-point :math:`q^*`: the first seven controls and the
    last seven are equal.
    """
    rate = (1.0 - REFERENCE_DECAY) / TICK
    time_constant = -TICK / math.log(REFERENCE_DECAY)
    filtered, direct = [], []
    for j, (kp, kd) in enumerate(zip(STIFFNESS, DAMPING, strict=True), start=1):
        filtered.append(
            f'<general joint="joint{j}" dyntype="filterexact" dynprm="{time_constant}" '
            f'gainprm="{REFERENCE_DECAY * kp - rate * kd}" '
            f'biastype="affine" biasprm="0 {-kp} {-kd}"/>'
        )
        direct.append(
            f'<general joint="joint{j}" gainprm="{(1.0 - REFERENCE_DECAY) * kp + rate * kd}"/>'
        )
    return "<actuator>" + "\n".join(filtered + direct) + "</actuator>"


def build_model(objects: str = "") -> mujoco.MjModel:
    """Compile the robot at its table together with a task's own bodies.

    Parameters
    ----------
    objects : str, default=""
        MJCF elements that go into the world body: the task's obstacles, blocks, markers.

    Returns
    -------
    mujoco.MjModel
        To be shared by all environments of a task. Only the rod, the table and what the
        task declares collide; the links of the arm are drawn but touch nothing. Blocks at
        rest sleep until they are touched, which saves half the time where there are many.
    """
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco model="skvdd">
          <compiler angle="radian" autolimits="true"/>
          <option timestep="{TICK}" cone="elliptic" impratio="3" tolerance="1e-10">
            <flag sleep="enable"/>
          </option>
          <visual>
            <global offwidth="1024" offheight="1024"/>
            <headlight ambient="0.3 0.3 0.3" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
          </visual>
          {DEFAULTS}{WORLD}
          <worldbody>{FRAME}{ARM}{objects}</worldbody>
          {actuators()}
        </mujoco>""")


@cache
def kinematic_model() -> mujoco.MjModel:
    """Return the shared model of the arm alone, for inverse kinematics."""
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco model="panda">
          <compiler angle="radian" autolimits="true"/>
          {DEFAULTS}<worldbody>{ARM}</worldbody>
        </mujoco>""")


# ---------------------------------------------------------------------------------------
# Cartesian control
# ---------------------------------------------------------------------------------------


def clip_to_reach(position: ArrayLike) -> Array:
    """Return a set-point that the arm reaches: the nearest at the same height, where there is one.

    Seen from above, the reach of the downward tool is the part of a disc around the base
    that lies ``REACH_MIN_X`` in front of it. The radius leaves 9 mm of stretch in the
    elbow, because the inverse kinematics is singular for the straight arm. Nothing is in reach
    above ``MAX_HEIGHT`` and below ``MIN_HEIGHT``, which then take the place of the height.

    Parameters
    ----------
    position : array-like of shape (3,)
        Wanted position of the tool center point, m. It has to be finite.

    Returns
    -------
    ndarray of shape (3,)
        `position` itself, unchanged to the last bit, where it is within reach.
    """
    x, y, z = np.array(position, dtype=np.float64).tolist()
    z = min(max(z, MIN_HEIGHT), MAX_HEIGHT)
    rise = z + WRIST_HEIGHT - SHOULDER_HEIGHT
    radius = WRIST_OFFSET + math.sqrt(WRIST_REACH**2 - rise**2)
    return np.array([*_nearest_in_segment(x, y, radius), z])


def _nearest_in_segment(x: float, y: float, radius: float) -> tuple[float, float]:
    """Project a point onto the disc's segment ``x >= REACH_MIN_X``, a convex set."""
    distance = math.hypot(x, y)
    if distance <= radius and x >= REACH_MIN_X:
        return x, y
    if distance > radius:
        scale = radius / distance
        if x * scale >= REACH_MIN_X:
            return x * scale, y * scale
    corner = math.sqrt(max(radius**2 - REACH_MIN_X**2, 0.0))
    return REACH_MIN_X, min(max(y, -corner), corner)


class InverseKinematics:
    r"""Damped least squares on a scratch copy of the arm.

    One control step of D3IL follows 105 small damped steps toward the set-point with a
    pull to the rest posture in the null space. Here :math:`q \leftarrow q + n +
    J^\top (J J^\top + \lambda^2 I)^{-1} (e - J n)` takes their place: twice, the pull
    :math:`n` only the first time.

    The pose error :math:`e` used by one iteration and the change of the joints in one
    solve are bounded, so a set-point that jumps across the table is approached over several
    control steps, at the rate D3IL's own limiter allows (9 rad/s).
    """

    def __init__(self) -> None:
        model = kinematic_model()
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site("tcp").id
        self._qpos = self._data.qpos
        self._position = self._data.site_xpos[self._site]
        self._rotation = self._data.site_xmat[self._site]
        self._jacobian = np.zeros((6, N_JOINTS))
        self._damping = IK_DAMPING**2 * np.eye(6)
        self._gram = np.zeros((6, 6))
        self._error, self._pulled, self._dual = np.zeros((3, 6))
        self._step = np.zeros(N_JOINTS)

    def solve(self, position: Array, joints: Array) -> Array:
        """Return the joint set-point for the next control step.

        Parameters
        ----------
        position : ndarray of shape (3,)
            Wanted position of the tool center point, m; the tool always points down.
        joints : ndarray of shape (7,)
            The last joint set-point, rad, from which the arm moves on.

        Returns
        -------
        ndarray of shape (7,)
            Joint set-point within the limits, rad.
        """
        away = np.minimum(np.maximum(REST_JOINTS - joints, -NULL_SPACE_CLIP), NULL_SPACE_CLIP)
        solution = self._improve(joints, position, NULL_SPACE_GAIN * away)
        for _ in range(IK_ITERATIONS - 1):
            solution = self._improve(solution, position, _NO_PULL)
        change = solution - joints
        turn = mujoco.mju_norm(change)
        if turn > IK_MAX_TURN:
            solution = joints + change * (IK_MAX_TURN / turn)
        return np.minimum(np.maximum(solution, JOINT_MIN), JOINT_MAX)

    def _improve(self, joints: Array, position: Array, pull: Array) -> Array:
        """Take one damped step from `joints`.

        MuJoCo's own small algebra is used: it is faster than NumPy's at this size, and its
        last bits do not depend on which BLAS is installed.
        """
        self._linearize(joints, position)
        jacobian, gram, error, step = self._jacobian, self._gram, self._error, self._step
        mujoco.mju_mulMatVec(self._pulled, jacobian, pull)
        mujoco.mju_mulMatMatT(gram, jacobian, jacobian)
        gram += self._damping
        mujoco.mju_cholFactor(gram, 0.0)
        mujoco.mju_cholSolve(self._dual, gram, error - self._pulled)
        mujoco.mju_mulMatTVec(step, jacobian, self._dual)
        return joints + pull + step

    def _linearize(self, joints: Array, position: Array) -> None:
        """Fill in the bounded pose error (6,) and the Jacobian (6, 7), in world axes."""
        self._qpos[:] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        jacobian, error, rotation = self._jacobian, self._error, self._rotation
        mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
        shift = position - self._position
        distance = mujoco.mju_norm3(shift)
        error[:3] = shift if distance <= IK_MAX_SHIFT else shift * (IK_MAX_SHIFT / distance)
        # sin(angle) * axis of the rotation that is missing to diag(1, -1, -1)
        error[3] = 0.5 * (rotation[7] - rotation[5])
        error[4] = 0.5 * (rotation[6] + rotation[2])
        error[5] = -0.5 * (rotation[1] + rotation[3])


class Panda:
    """The arm of one simulation: reset it, move its tool, read where it is.

    Parameters
    ----------
    model : mujoco.MjModel
        Made by `build_model`.
    data : mujoco.MjData
        The simulation that belongs to this arm alone.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model = model
        self._data = data
        self._kinematics = InverseKinematics()
        self._tcp = data.site_xpos[model.site("tcp").id]
        self._joints = np.zeros(N_JOINTS)

    @property
    def tcp_position(self) -> Array:
        """Position of the tool center point, m, shape (3,), as measured at the last tick."""
        return self._tcp.copy()

    def reset(self, joints: ArrayLike) -> None:
        """Put the arm at rest in a posture, forget the old simulation, run one tick.

        Parameters
        ----------
        joints : array-like of shape (7,)
            Joint positions, rad.
        """
        mujoco.mj_resetData(self._model, self._data)
        self._joints = np.array(joints, dtype=np.float64)
        self._data.qpos[:N_JOINTS] = self._joints
        self._data.act[:] = self._joints
        self._data.ctrl[: 2 * N_JOINTS] = np.tile(self._joints, 2)
        mujoco.mj_step(self._model, self._data)

    def move(self, position: Array, n_ticks: int) -> None:
        """Run the simulation with one Cartesian set-point.

        Parameters
        ----------
        position : ndarray of shape (3,)
            Set-point of the tool center point, m; see `clip_to_reach`.
        n_ticks : int
            Milliseconds to simulate.
        """
        self._joints = self._kinematics.solve(position, self._joints)
        self._data.ctrl[:N_JOINTS] = self._joints
        self._data.ctrl[N_JOINTS : 2 * N_JOINTS] = self._joints
        mujoco.mj_step(self._model, self._data, n_ticks)
