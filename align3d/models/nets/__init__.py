"""Networks: stock diffusers blocks, joined over views. These modules import diffusers; import them inside functions."""
