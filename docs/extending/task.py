"""A task for the simulated robot: reach a line, past a post on either side."""

import numpy as np
from gymnasium.spaces import Box

from skvdd import GaussianMoEPolicy
from skvdd.datasets.experts.recording import Demonstrator, record
from skvdd.envs import Avoiding, Score, TaskSpec, register_task
from skvdd.envs.task import RobotTask
from skvdd.evaluation import evaluate_policy

POST = np.array([0.5, -0.05])  # m
FINISH_Y = 0.12  # m


# [task]
class Post(RobotTask):
    """Bring the rod past a post. Action: change of the set-point in x and y, m."""

    context_size = 1  # x of the post, m
    start_joints = Avoiding.start_joints

    def __init__(self, render_mode=None, width=480, height=480, camera="view"):
        super().__init__(render_mode, width, height, camera)
        self.observation_space = Box(-1.25, 1.25, (3,), np.float64)  # set-point x, y; the post's x
        self._rod, self._post = (self.model().geom(name).id for name in ("rod", "post"))

    @classmethod
    def objects(cls):
        place = f'pos="{POST[0]} {POST[1]} 0"'
        return (
            f'<body name="post" mocap="true" {place}>'
            '<geom name="post" type="cylinder" size="0.03 0.1" rgba="1 0 0 1"/></body>'
        )

    @classmethod
    def draw_context(cls, rng):
        return rng.uniform(0.47, 0.53, size=1)

    def _begin(self, context):
        self.data.mocap_pos[0, :2] = context[0], POST[1]
        self._side = None

    def _observe(self):
        return np.append(self.set_point[:2], self._context)

    def _is_over(self):
        self._success = bool(self.tcp_position[1] > FINISH_Y)
        return self._success or self._touches(self._rod, [self._post])

    def _keep_books(self):
        x, y, _ = self.tcp_position
        if self._side is None and y > POST[1]:
            self._side = "left" if x < self._context[0] else "right"

    def _info(self):
        return {"success": self._success, "behavior": self._side}


# [demonstrator]
def make_actor(task, side, rng):
    """Return a hand that passes the post on one side, a little unsteadily."""
    clearance = rng.uniform(0.06, 0.09) * (-1 if side == "left" else 1)

    def act(observation):
        beside = np.array([observation[2] + clearance, POST[1]])
        target = beside if observation[1] < POST[1] else np.array([POST[0], 0.3])
        way = target - observation[:2]
        return 0.006 * way / np.linalg.norm(way) + 0.0005 * rng.standard_normal(2)

    return act


demonstrator = Demonstrator(make_actor, version=1, description="passes at 6 to 9 cm")

# [spec]
register_task(
    TaskSpec(
        name="post",
        env_id="Post-v0",
        entry_point=Post,
        time_limit=120,
        scores=(Score(behaviors={"left": "left of the post", "right": "right of the post"}),),
        n_contexts=20,
        n_rollouts=4,
        demonstrators={"post": demonstrator},
        states=("desired x", "desired y", "post x"),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m"},
    )
)

# [policy]
demos = record("post", 20, n_jobs=1, progress=False)
print(demos.describe())
states, actions, _ = demos.windows(window_size=2)
policy = GaussianMoEPolicy(n_experts=4, window_size=2, max_iter=300, random_state=0)
policy.fit(states, actions)
print(evaluate_policy(policy, "post", random_state=0, progress=False))
