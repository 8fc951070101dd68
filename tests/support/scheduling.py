"""Files of tests given to processes as by `--dist loadfile`, but what ended its process is not begun again."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling


class OnceEach(LoadFileScheduling):
    """A test that ends its process (a time limit, a crash of a library) fails, and the rest of its file goes on.

    `LoadFileScheduling` gives the whole rest of the file to another process, the test that ended the first one
    included: one that hangs would end process after process, and the run never.
    """

    def remove_node(self, node: Any) -> str | None:
        pending = (
            (unit, test)
            for unit in self.assigned_work.get(node, {}).values()
            for test, done in unit.items()
            if not done
        )
        unit, culprit = next(pending, (None, None))
        if unit is not None:
            unit[culprit] = True
        super().remove_node(node)
        return culprit
