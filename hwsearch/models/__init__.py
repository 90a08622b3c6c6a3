"""nn.Modules of every mixer, the hybrid language model, checkpoints in and out. The modules in here import torch."""
