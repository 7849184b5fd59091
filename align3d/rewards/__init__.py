"""Rewards, one file each."""

REWARDS = {
    "clip-tiny": "align3d.rewards.clip_tiny:ClipTiny",
    "colorfulness": "align3d.rewards.colorfulness:Colorfulness",
    "dnc": "align3d.rewards.dnc:DNC",
    "imagenet": "align3d.rewards.imagenet:ImageNet",
    "jpeg": "align3d.rewards.jpeg:JPEG",
    "normal": "align3d.rewards.normal:Normal",
}
