"""Prints docs/settings.md, made from settings.py: `python -m oarlock_runtime.cli.settings_page`, or `make docs`."""

from oarlock_runtime.settings import DEFAULTS, DESCRIPTIONS, env_names, flag_of, show

HEAD = """# Settings

Made from `runtime/oarlock_runtime/settings.py` by `make docs`; a test fails when the two differ.

A value comes from, in falling order: a flag of `oarlock serve`, its `OARLOCK_*` variable, PaddleNLP's variable of the
same meaning, the default. An empty variable counts as unset. An unknown flag or `OARLOCK_*` name is an error that
offers the nearest one. The effective configuration is printed at start. Sizes may be written `512MiB`, `2GB`, `1.5g`.

| flag | what it sets | default | values | environment |
|---|---|---|---|---|
"""


def values(name: str) -> str:
    """What may be given for a setting, in words."""
    description = DESCRIPTIONS[name]
    if isinstance(DEFAULTS[name], bool):
        return "on, off"
    if description.choices:
        return ", ".join(description.choices)
    if description.low is None or description.high is None:
        return "text"
    if description.unit == "bytes":
        bounds = [show(name, bound) if bound else "0" for bound in (int(description.low), int(description.high))]
        return f"{bounds[0]} to {bounds[1]}"
    return f"{description.low:.12g} to {description.high:.12g} {description.unit}".rstrip()


def page() -> str:
    """The whole page, in markdown."""
    rows = []
    for name, description in DESCRIPTIONS.items():
        flag = f"`{flag_of(name)}`" + (f", `--no-{flag_of(name)[2:]}`" if isinstance(DEFAULTS[name], bool) else "")
        variables = ", ".join(f"`{variable}`" for variable in env_names(name))
        cells = [flag, description.help, show(name, DEFAULTS[name]), values(name), variables]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
