"""Who deserves what: advantage estimators over episodes of sampled tokens. NumPy only.

| name          | stage   | needs values | advantage of a token                                        |
|---------------|---------|--------------|-------------------------------------------------------------|
| `gae`         | learner | yes          | GAE over all sampled tokens of the episode                  |
| `turn_gae`    | learner | yes          | GAE over turns, shared by the tokens of a turn              |
| `bilevel_gae` | learner | yes          | GAE over turns, whose returns feed a GAE inside each turn   |
| `grpo`        | driver  | no           | (return - mean of the group) / spread of the group          |
| `rloo`        | driver  | no           | return - mean of the other members of the group             |

A new estimator is one file with a class that follows `credit.base.CreditAssigner`, and one row of
`registry.CREDIT`.

Conventions: a turn's reward is earned at the turn's last sampled token; the value of a token is the
value of the state *before* it is sampled (the hidden state that predicts it); an episode that
terminated is worth nothing afterwards, any other end bootstraps with `Trajectory.bootstrap_value`.
"""
