"""What the tiny published UNets have in common, and how networks of diffusers are written."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

WEIGHTS = "diffusion_pytorch_model"
HALF = {  # of config.json of a UNet, and of a side branch, which is its first half
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "block_out_channels": [8, 16, 16, 16],
    "class_embed_type": None,
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
}
WHOLE = {  # of a UNet
    **HALF,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "sample_size": 4,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json, in a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_weights(path: Path, network: nn.Module) -> None:
    """All tensors of a network."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path, {"format": "pt"})
