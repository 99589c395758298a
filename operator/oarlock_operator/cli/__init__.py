"""The `oarlock-operator` command: run, local, render."""
