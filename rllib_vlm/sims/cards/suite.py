"""The tests of "SFT Memorizes, RL Generalizes" (Chu et al., arXiv 2501.17161) for GeneralPoints.

234 deals each, as in the paper's evaluation scripts (LeslieTrue/SFTvsRL at 5a6ea55); the splits say what differs.
"""

from rllib_vlm.sims.suite import Part, Suite

CARDS = Suite(
    simulator="cards",
    parts=(
        Part(name="in_distribution", split="heldout", episodes=234),
        Part(name="rule_ood", split="rule_ood", episodes=234, only_with={"face_cards": ("ten", "rank")}),
        Part(
            name="visual_ood",
            split="visual_ood",
            episodes=234,
            only_with={"observation": ("vision", "both", "text_suits"), "suits": ("black", "red")},
        ),
    ),
)
