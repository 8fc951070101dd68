"""The tests of "SFT Memorizes, RL Generalizes" (Chu et al., arXiv 2501.17161) for street navigation.

48, 48 and 18 routes as in the paper's evaluation scripts (LeslieTrue/SFTvsRL at 5a6ea55). There the first two are
drawn from the routes of training; here no part has any of those.
"""

from rllib_vlm.sims.suite import Part, Suite

VIRL = Suite(
    simulator="streetview",
    parts=(
        Part(name="in_distribution", split="heldout", episodes=48),
        Part(name="rule_ood", split="rule_ood", episodes=48, env_config={"action_set": "relative"}),
        # In words a city of another look is other names and other compass words.
        Part(name="visual_ood", split="visual_ood", episodes=18),
    ),
)
