"""Networks of priors. These modules import torch; import them inside functions."""
