"""The commands, one file each: a dataclass whose fields are the flags, and beside it a function `run(options)`.

The first line of the dataclass's docstring is the command's line in `align3d --help`. Class variables ask for more:

- `parts`: kinds (keys of TABLES) that are chosen by name, each with its default; None where the user must choose.
  `--reward dnc` picks the class, whose own fields become the flags `--reward.FIELD`.
- `groups`: further dataclasses, name -> "module:Class", whose fields become the flags `--NAME.FIELD`.
- `optimises`: what methods must optimise, "model" or "scene", to be named in its help.
- `shorthands`: flag -> longer flag that it stands for.
- `first`: the flag that a word stands for which comes first, without a flag.
- `defaults`: a function from the arguments to defaults: kind -> options and "name"; "options" has the command's own.
- `earlier`: the flag that names an earlier run, whose model and options are then the defaults; or a function that finds
  the run in the arguments, or None.

A part may have parts of its own: its class variable `parts` has the names of fields, which are kinds of TABLES, each
with its default. `--scene.density NAME` picks what is in the field, and `--scene.density.FIELD` are its flags.

`run` gets an instance of each part and group as a keyword argument of the same name, and, if there are parts, a dict
`names` with their names. Only a command with `many_processes = True` may be started by torchrun.
"""

COMMANDS = {
    "demo": "align3d.commands.demo:Demo",
    "download": "align3d.commands.download:Download",
    "train": "align3d.commands.train:Train",
    "optimize": "align3d.commands.optimize:Optimize",
    "sample": "align3d.commands.sample:Sample",
    "score": "align3d.commands.score:Score",
    "evaluate": "align3d.commands.evaluate:Evaluate",
    "compare": "align3d.commands.compare:Compare",
    "embed": "align3d.commands.embed:Embed",
    "adapter": "align3d.commands.adapter:AdapterCommand",
    "render": "align3d.commands.render:Render",
    "list": "align3d.commands.list:List",
    "doctor": "align3d.commands.doctor:Doctor",
}

TABLES = {  # kind -> where its table is
    "model": "align3d.models:MODELS",
    "method": "align3d.methods:METHODS",
    "reward": "align3d.rewards:REWARDS",
    "prior": "align3d.priors:PRIORS",
    "scene": "align3d.starts:STARTS",
    "density": "align3d.scenes.density:DENSITIES",
    "cameras": "align3d.scenes.rings:RINGS",
    "features": "align3d.features:FEATURES",
}
