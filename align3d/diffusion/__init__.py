"""Pure functions of diffusion: schedule, transition, sampler, guidance."""
