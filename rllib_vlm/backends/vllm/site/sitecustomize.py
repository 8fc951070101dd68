"""Python runs this at the start of every process that has this folder on its PYTHONPATH: engines, and what they start.

vLLM looks at model classes in fresh interpreters, where nothing of this package is imported before torchvision is.
"""

from rllib_vlm.models.torchvision_ops import declare_operators

declare_operators()
