"""Experiment files: YAML or Python -> AlgorithmConfig -> tune.Tuner.

`document` reads YAML and remembers where every value stands, `schema` knows the frame around an experiment,
`sections` knows the builder methods and their keywords, `samplers` and `plugins` turn names into Tune's
objects, `overrides` reads `--set` and `--stop`, `loader` puts it all together into `Experiment`s, and
`runner` runs them. Nothing here is imported by `import rllib_vlm`.
"""
