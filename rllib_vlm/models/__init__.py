from rllib_vlm.models.torchvision_ops import declare_operators

declare_operators()  # before transformers looks for torchvision
