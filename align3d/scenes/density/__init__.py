"""How the Gaussians of a scene that is optimised become more and fewer: one file for each way.

A way is a frozen dataclass, a `density.base.Density`. It is asked between any two updates, sees the Gaussians and how
much the views have pulled at each of them, and says what becomes of them; it keeps nothing itself.
"""

DENSITIES = {
    "none": "align3d.scenes.density.base:Density",
    "default": "align3d.scenes.density.default:CloneSplit",
    "mcmc": "align3d.scenes.density.mcmc:MCMC",
}
