"""Rewards, one file each."""

REWARDS = {
    "aesthetic": "align3d.rewards.aesthetic:Aesthetic",
    "aesthetic-linear": "align3d.rewards.aesthetic:AestheticLinear",
    "clip": "align3d.rewards.clip:ClipScore",
    "clip-tiny": "align3d.rewards.clip_tiny:ClipTiny",
    "colorfulness": "align3d.rewards.colorfulness:Colorfulness",
    "dnc": "align3d.rewards.dnc:DNC",
    "hpsv2": "align3d.rewards.hpsv2:HPSv2",
    "hpsv2.1": "align3d.rewards.hpsv2:HPSv21",
    "imagenet": "align3d.rewards.imagenet:ImageNet",
    "imagereward": "align3d.rewards.imagereward:ImageReward",
    "jpeg-compress": "align3d.rewards.jpeg:JPEGCompress",
    "jpeg-incompress": "align3d.rewards.jpeg:JPEGIncompress",
    "normal": "align3d.rewards.normal:Normal",
    "pickscore": "align3d.rewards.pickscore:PickScore",
    "vlm-judge": "align3d.rewards.vlm_judge:VLMJudge",
}
