"""Make the films of the guide from the policies of two examples: ``python docs/films.py``.

It takes about four minutes on one core, and needs what :ref:`headless` says to draw the robot.
"""

import runpy
from pathlib import Path

import matplotlib

from skvdd.evaluation import record_episode

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"


def main() -> None:
    """Run both examples and write ``_static/training.gif`` and ``_static/episode.gif``."""
    matplotlib.use("agg")
    toy = runpy.run_path(str(EXAMPLES / "plot_toy_experts.py"))
    toy["animation"].save(DOCS / "_static" / "training.gif", writer="pillow", dpi=60)
    avoiding = runpy.run_path(str(EXAMPLES / "plot_avoiding.py"))
    record_episode(
        avoiding["student"],
        "skvdd/Avoiding-v0",
        DOCS / "_static" / "episode.gif",
        random_state=1,
        fps=10,
        env_kwargs={"width": 320, "height": 240},
    )


if __name__ == "__main__":
    main()
