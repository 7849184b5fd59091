"""Published networks that models, rewards and features share, and the layouts of their files."""
