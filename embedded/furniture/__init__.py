"""Real furniture models with captions, rendered to training views: catalogue, geometry, colours, words, shards."""
