"""A neural radiance field: a grid and small networks, seen by marching along rays."""
