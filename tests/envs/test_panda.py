"""The arm against its published kinematics, the controller against its equations."""

import math

import mujoco
import numpy as np
import pytest

from skvdd.envs.panda import (
    DAMPING,
    JOINT_MAX,
    JOINT_MIN,
    STIFFNESS,
    InverseKinematics,
    Panda,
    build_model,
    clip_to_reach,
    kinematic_model,
)

START = np.array([-0.356, 0.429, -0.135, -2.055, 0.094, 2.481, 0.233])

# Modified Denavit-Hartenberg parameters of the Panda: a, alpha, d.
DH = (
    (0.0, 0.0, 0.333),
    (0.0, -math.pi / 2, 0.0),
    (0.0, math.pi / 2, 0.316),
    (0.0825, math.pi / 2, 0.0),
    (-0.0825, -math.pi / 2, 0.384),
    (0.0, math.pi / 2, 0.0),
    (0.088, math.pi / 2, 0.0),
)


@pytest.fixture(scope="module")
def model():
    return build_model()


def random_postures(n, seed=0):
    # The simulated joint limits start a little inside some of the controller's.
    low, high = np.maximum(JOINT_MIN, -2.8), np.minimum(JOINT_MAX, 3.5)
    low[1], high[1] = -1.7, 1.7
    return np.random.default_rng(seed).uniform(low, high, (n, 7))


def turn_z(angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def tool_frame(joints):
    frame = np.eye(4)
    for (a, alpha, d), q in zip(DH, joints, strict=True):
        c, s = math.cos(alpha), math.sin(alpha)
        link = np.array([[1, 0, 0, a], [0, c, -s, -d * s], [0, s, c, d * c], [0, 0, 0, 1]])
        frame = frame @ link @ turn_z(q)
    hand = turn_z(-math.pi / 4)
    hand[2, 3] = 0.107 + 0.105
    return frame @ hand


@pytest.mark.parametrize("joints", random_postures(5))
def test_forward_kinematics_is_the_published_chain(joints):
    model = kinematic_model()
    data = mujoco.MjData(model)
    data.qpos[:] = joints
    mujoco.mj_kinematics(model, data)
    expected = tool_frame(joints)
    np.testing.assert_allclose(data.site("tcp").xpos, expected[:3, 3], rtol=0, atol=1e-12)
    # The hand's quaternion is written with ten digits.
    np.testing.assert_allclose(
        data.site("tcp").xmat.reshape(3, 3), expected[:3, :3], rtol=0, atol=1e-9
    )


def test_masses_of_the_links_are_the_published_ones(model):
    masses = [model.body(f"link{i}").mass[0] for i in range(1, 8)]
    assert masses == [2.77281, 2.7996, 2.14603, 2.18807, 3.19545, 1.35761, 0.417345]


@pytest.mark.parametrize("joints", random_postures(5, seed=1))
def test_an_arm_that_is_where_it_should_be_feels_no_gravity(model, joints):
    data = mujoco.MjData(model)
    data.qpos[:] = data.act[:] = joints
    data.ctrl[:] = np.tile(joints, 2)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.qfrc_smooth, 0.0, atol=1e-9)


def test_the_reference_approaches_the_set_point_by_0_512_per_tick(model):
    data = mujoco.MjData(model)
    first, last = START, START + np.linspace(-0.02, 0.02, 7)
    data.qpos[:] = data.act[:] = first
    data.ctrl[:] = np.tile(last, 2)
    for tick in range(1, 36):
        mujoco.mj_step(model, data)
        np.testing.assert_allclose(
            data.act, last + (first - last) * 0.512**tick, rtol=0, atol=1e-12
        )


def test_the_actuators_add_up_to_the_tracking_law(model):
    rng = np.random.default_rng(2)
    data = mujoco.MjData(model)
    set_point = START + rng.normal(0.0, 0.01, 7)
    previous = START + rng.normal(0.0, 0.01, 7)
    data.qpos[:] = START
    data.qvel[:] = velocity = rng.normal(0.0, 0.2, 7)
    data.act[:] = previous
    data.ctrl[:] = np.tile(set_point, 2)
    mujoco.mj_forward(model, data)
    reference = set_point + 0.512 * (previous - set_point)
    slope = (reference - previous) / 0.001
    expected = STIFFNESS * (reference - START) + DAMPING * (slope - velocity)
    np.testing.assert_allclose(
        data.actuator_force[:7] + data.actuator_force[7:], expected, rtol=1e-11
    )


def test_torques_include_gravity_and_stay_within_the_motors(model):
    data = mujoco.MjData(model)
    data.qpos[:] = START
    data.act[:] = START - 1.0
    data.ctrl[:] = np.tile(START + 1.0, 2)
    mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(data.qfrc_actuator, [87, 87, 87, 87, 12, 12, 12])


def test_inverse_kinematics_reaches_its_set_point_with_the_tool_down():
    kinematics, joints = InverseKinematics(), START
    position = np.array([0.6, 0.1, 0.12])
    for _ in range(10):
        joints = kinematics.solve(position, joints)
    frame = tool_frame(joints)
    np.testing.assert_allclose(frame[:3, 3], position, rtol=0, atol=1e-4)
    np.testing.assert_allclose(frame[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-2)


@pytest.mark.parametrize("height", [0.12, 0.25])
@pytest.mark.parametrize("angle", np.linspace(-1.3, 1.3, 7))
def test_inverse_kinematics_converges_along_the_edge_of_reach(angle, height):
    kinematics, joints = InverseKinematics(), START
    edge = clip_to_reach([2.0 * math.cos(angle), 2.0 * math.sin(angle), height])
    for _ in range(30):
        joints = kinematics.solve(edge, joints)
    np.testing.assert_allclose(tool_frame(joints)[:3, 3], edge, rtol=0, atol=1e-3)


def test_one_solve_turns_the_joints_by_at_most_9_rad_per_second():
    joints = InverseKinematics().solve(np.array([0.3, 0.6, 0.12]), START)
    assert np.linalg.norm(joints - START) == pytest.approx(0.315, abs=1e-12)


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ([0.5, -0.28, 0.121], [0.5, -0.28, 0.121]),
        ([2.0, 0.0, 0.121], [0.798, 0.0, 0.121]),
        ([3.0, -4.0, 0.121], [0.4788, -0.6384, 0.121]),
        ([-1.0, 0.1, 0.121], [0.25, 0.1, 0.121]),
        ([0.0, 3.0, 0.121], [0.25, math.sqrt(0.798**2 - 0.25**2), 0.121]),
        ([-1e300, -1e300, 0.121], [0.25, -math.sqrt(0.798**2 - 0.25**2), 0.121]),
        ([1e300, 0.0, 0.121], [0.798, 0.0, 0.121]),
    ],
)
def test_set_points_out_of_reach_go_to_the_nearest_within(wanted, nearest):
    # 0.121 m puts the wrist exactly at the height of the shoulder: 0.088 + 0.71 = 0.798.
    np.testing.assert_allclose(clip_to_reach(wanted), nearest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("height", [-1.0, -0.6, -0.5756, 0.5, 0.8109, 0.82, 0.9, 5.0])
def test_heights_out_of_reach_are_replaced(height):
    # 0.121 m +- sqrt(0.71^2 - (0.25 - 0.088)^2): no point of that height is 0.25 m from the base.
    half = math.sqrt(0.71**2 - (0.25 - 0.088) ** 2)
    low, high = 0.121 - half, 0.121 + half
    x, y, z = clip_to_reach([0.5, 0.1, height])
    assert z == pytest.approx(min(max(height, low), high), abs=1e-9)
    assert x >= 0.25
    assert math.hypot(math.hypot(x, y) - 0.088, z - 0.121) <= 0.71 + 1e-9


def test_reach_is_a_projection():
    rng = np.random.default_rng(3)
    wanted = np.column_stack([rng.uniform(-1.5, 1.5, (200, 2)), np.full(200, 0.15)])
    clipped = np.array([clip_to_reach(w) for w in wanted])
    np.testing.assert_allclose([clip_to_reach(c) for c in clipped], clipped, atol=1e-15)
    distance = np.linalg.norm(wanted - clipped, axis=1)
    for other in clipped:  # no reachable point is nearer
        assert (np.linalg.norm(wanted - other, axis=1) >= distance - 1e-12).all()


def test_a_set_point_within_reach_is_kept_to_the_last_bit():
    position = np.array([0.1 + 0.2 + 0.3, 1.0 / 3.0, 0.12235931])
    assert clip_to_reach(position).tobytes() == position.tobytes()


def test_holding_the_start_keeps_the_tool_within_a_few_millimeters(model):
    arm = Panda(model, mujoco.MjData(model))
    arm.reset(START)
    start = arm.tcp_position
    for _ in range(60):
        arm.move(start, 35)
        assert np.linalg.norm(arm.tcp_position - start) < 0.004


def test_reset_forgets_everything(model):
    arm = Panda(model, mujoco.MjData(model))
    arm.reset(START)
    target = arm.tcp_position + np.array([0.05, 0.05, 0.0])
    arm.move(target, 35)
    moved = arm.tcp_position
    arm.reset(START)
    arm.move(target, 35)
    np.testing.assert_array_equal(arm.tcp_position, moved)


def test_the_measured_position_is_a_copy(model):
    arm = Panda(model, mujoco.MjData(model))
    arm.reset(START)
    position = arm.tcp_position
    arm.tcp_position[:] = 7.0
    np.testing.assert_array_equal(arm.tcp_position, position)


def test_only_the_rod_and_the_table_with_its_support_can_collide(model):
    names = {model.geom(i).name for i in range(model.ngeom) if model.geom_contype[i]}
    assert names == {"rod", "table", "support"}
