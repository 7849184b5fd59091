"""docs/migrating.md: all that the public code can be told is on the page, and what it says to give instead is known."""

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from align3d import registry
from align3d.cli import main
from align3d.commands import COMMANDS, TABLES
from align3d.commands.flags import parse

PAGE = (Path(__file__).parent.parent / "docs/migrating.md").read_text(encoding="utf-8")
NABLA, REWARDSDS = PAGE.split("\n# Nabla-R2D3\n")[1].split("\n# RewardSDS\n")
CODE = re.compile(r"`([^`\n]+)`")
FLAG = re.compile(r"(?<![\w-])--[a-z](?:[\w.-]*\w)?")
OF_SECTION = {"Training": "train", "Inference": "sample", "Pictures": "optimize", "Radiance": "optimize"}
OF_SECTION |= {"Evaluation": "score"}  # first words of titles -> whose options the second column has
GENERATE = (
    *("prompt", "reward_strategy", "n_noises", "reward_model", "mode", "extra_src_prompt", "extra_tgt_prompt"),
    *("init_image_fn", "lr", "seed", "n_steps", "stage_two_start_step", "cfg_scale", "method", "save_dir"),
)  # flags of 2D_experiments/generate.py
EVALUATE = ("data_path", "images_dir", "output_path", "device", "n_views")  # of evaluation/*.py
SCRIPTS = ("clip_eval.py", "aesthetic_eval.py", "image_reward_eval.py", "llm_grader.py")
KEYS = {  # of reward-mvdream-sd21.yaml and reward-mvdream-sd21-shading.yaml, by their group
    "": "name tag exp_root_dir seed data_type system_type system.geometry_type material_type background_type "
    "renderer_type prompt_processor_type guidance_type loggers.wandb",
    "data": "batch_size n_view width height resolution_milestones camera_distance_range fovy_range elevation_range "
    "camera_perturb center_perturb up_perturb n_val_views eval_camera_distance eval_fovy_deg",
    "geometry": "radius normal_type density_bias density_activation density_blob_scale density_blob_std "
    "pos_encoding_config",
    "material": "n_output_dims color_activation ambient_only_steps textureless_prob ambient_light_color "
    "diffuse_light_color soft_shading albedo_activation",
    "background": "color_activation random_aug share_aug_bg",
    "renderer": "radius num_samples_per_ray",
    "prompt_processor": "pretrained_model_name_or_path prompt negative_prompt front_threshold back_threshold",
    "guidance": "model_name ckpt_path guidance_scale min_step_percent max_step_percent recon_loss recon_std_rescale "
    "reward_strategy reward_model n_noises reward_duration num_of_training_steps",
    "loss": "lambda_sds lambda_orient lambda_sparsity lambda_opaque lambda_z_variance",
    "optimizer": "name args.betas args.eps params",
    "trainer": "max_steps log_every_n_steps num_sanity_val_steps val_check_interval enable_progress_bar precision",
    "checkpoint": "save_last save_top_k every_n_train_steps",
}
ENCODING = "otype n_levels n_features_per_level log2_hashmap_size base_resolution per_level_scale"
PARAMS = "geometry.encoding geometry.density_network geometry.feature_network background"


def options(part, prefix):
    """The flags of a dataclass and of those in it."""
    found = set()
    for field in fields(part):
        name = f"{prefix}{field.name.replace('_', '-')}"
        group = field.default_factory
        unset = f"{prefix}no-{field.name.replace('_', '-')}"
        found |= options(group, f"{name}.") if is_dataclass(group) else {f"--{name}", f"--{unset}"}
    return found


def known(command):
    """Every flag that a command has with one part or another."""
    own = registry.load(COMMANDS, command, "command")
    found = options(own, "") | set(getattr(own, "shorthands", {}))
    for kind in getattr(own, "parts", {}):
        table = registry.load({}, TABLES[kind])
        found.add(f"--{kind}")
        found |= set().union(*(options(registry.load(table, name), f"{kind}.") for name in table))
    for name, path in getattr(own, "groups", {}).items():
        found |= options(registry.load({}, path), f"{name}.")
    return found


def sections(text):
    """(Command, text) of each part of the page that has one."""
    for part in text.split("\n## "):
        yield OF_SECTION.get(re.match(r"\W*(\w*)", part)[1]), part


def said():
    """(Command, code) of all that the page says to give: second columns, and lines below tables."""
    for command, part in [*sections(NABLA), *sections(REWARDSDS)]:
        for line in part.replace("\\\n", " ").splitlines()[1:]:
            if line.startswith("Without a counterpart") or line.startswith("Not offered"):
                continue
            text = line.strip("| ").split(" | ", 1)[-1] if line.startswith("|") else line
            for code in CODE.findall(text) if "`" in text else [text]:
                whose = re.match(r"(?:torchrun .*-m )?align3d (\w+)", code)
                if whose or (FLAG.match(code) and command):
                    yield (whose[1] if whose else command), code


SAID = sorted(set(said()))


def test_the_test_knows_what_the_command_line_knows(capsys):
    """The flags that it takes to be known are those of --help."""
    assert main(["optimize", "--scene", "nerf", "--method", "bridge", "--help"]) == 0
    shown = set(FLAG.findall(capsys.readouterr().out)) - {"--help"}
    assert len(shown) > 80 and shown <= known("optimize"), shown - known("optimize")
    assert "--method.nothing" not in known("optimize") and "--candidates" in known("optimize")
    assert len(SAID) > 100 and {"train", "sample", "optimize", "score", "download"} <= {command for command, _ in SAID}


@pytest.mark.parametrize("command", sorted({command for command, _ in SAID}))
def test_every_flag_that_is_said_is_known(command):
    flags = known(command)
    for whose, code in SAID:
        if whose == command:
            unknown = set(FLAG.findall(code.partition("align3d ")[2] or code)) - flags
            assert not unknown, f"{code}: align3d {command} has no {', '.join(unknown)}"


@pytest.mark.parametrize(
    "line",
    [code for _, code in SAID if re.match("align3d (?!sample).* --", code) and "--out" in code and "..." not in code],
)
def test_whole_commands_are_understood(line):
    """As far as they can be without files."""
    words = shlex.split(line)
    assert parse(registry.load(COMMANDS, words[1], "command"), words[1], words[2:]) is not None


@pytest.mark.parametrize("words", [code for whose, code in SAID if whose == "optimize" and re.match(r"--\S+ ", code)])
def test_options_take_the_values_that_are_said(words):
    run = ["rewardsds-nerf-shading", "--prompt", "a red mug", "--out", "run"]
    assert parse(registry.load(COMMANDS, "optimize"), "optimize", [*run, *shlex.split(words)]) is not None


@pytest.mark.parametrize("flag", [*GENERATE, *EVALUATE])
def test_every_flag_of_the_public_code_is_there(flag):
    assert re.search(rf"`--{flag}`", REWARDSDS), f"--{flag} is not on the page"


def test_every_key_of_the_public_configurations_is_there():
    keys = [f"{group}.{key}".strip(".") for group, names in KEYS.items() for key in names.split()]
    missing = [key for key in [*keys, *ENCODING.split(), *PARAMS.split()] if f"`{key}`" not in REWARDSDS]
    assert not missing
    assert all(script in REWARDSDS for script in SCRIPTS)
