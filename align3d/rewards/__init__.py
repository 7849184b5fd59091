"""Rewards, one file each."""

REWARDS = {
    "colorfulness": "align3d.rewards.colorfulness:Colorfulness",
    "dnc": "align3d.rewards.dnc:DNC",
    "imagenet": "align3d.rewards.imagenet:ImageNet",
    "jpeg": "align3d.rewards.jpeg:JPEG",
}
