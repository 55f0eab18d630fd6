#!/usr/bin/env python3
"""Make the virtual environment that the Makefile works in, and install into it.

    python3 tools/venv.py .venv --editable '.[cli,fast]' --group test

Needs nothing but a Python of at least 3.11 and a way to PyPI (or the mirror that pip is configured for). A bare
Debian has no `ensurepip`; then pip comes from the first of: the system's own pip, the system's pip wheel, PyPI,
`python3-venv` installed with apt-get (as root only). What goes wrong ends in one sentence that says what to do.
"""

# Must parse on any Python 3, so that an old one gets the sentence instead of a SyntaxError.
import argparse
import glob
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request

OLDEST = (3, 11)
PIP_URL = (
    "https://files.pythonhosted.org/packages/44/3c/d717024885424591d5376220b5e836c2d5293ce2011523c9de23ff7bf068/"
    "pip-25.3-py3-none-any.whl"
)
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
GROUPS_NEED_PIP = (25, 1)


class SetupError(Exception):
    """What is missing, as a sentence for people."""


def run(*command):
    """Run a command without input; its output when it succeeds, else None."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def fetch_pip(directory):
    """Path of pip's wheel, downloaded from PyPI and checked; None when that fails."""
    path = os.path.join(directory, PIP_URL.rpartition("/")[2])
    try:
        with urllib.request.urlopen(PIP_URL, timeout=20) as answer:
            wheel = answer.read()
    except OSError:
        return None
    if hashlib.sha256(wheel).hexdigest() != PIP_SHA256:
        return None
    with open(path, "wb") as file:
        file.write(wheel)
    return path


def bootstrap_pip(python):
    """Put pip into a virtual environment made without it; True when that worked."""
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "pip")
    if has_pip(python):
        return True
    for wheel in sorted(glob.glob("/usr/share/python-wheels/pip-*.whl")):
        run(python, os.path.join(wheel, "pip"), "install", "-q", "--no-index", wheel)
    if has_pip(python):
        return True
    with tempfile.TemporaryDirectory() as directory:
        wheel = fetch_pip(directory)
        if wheel:
            run(python, os.path.join(wheel, "pip"), "install", "-q", "--no-index", wheel)
    return has_pip(python)


def has_pip(python):
    """Whether this interpreter can run pip."""
    return run(python, "-m", "pip", "--version") is not None


def pip_version(python):
    """Pip's version as a tuple of two numbers."""
    words = (run(python, "-m", "pip", "--version") or "pip 0.0").split()
    return tuple(int(part) for part in words[1].split(".")[:2])


def create(venv):
    """Make the environment, or mend it; the path of its interpreter."""
    python = os.path.join(venv, "Scripts" if os.name == "nt" else "bin", "python")
    if run(python, "-c", "pass") is not None and has_pip(python):
        return python
    if run(sys.executable, "-m", "venv", "--clear", venv) is not None and has_pip(python):
        return python
    if run(sys.executable, "-m", "venv", "--clear", "--without-pip", venv) is not None and bootstrap_pip(python):
        return python
    if hasattr(os, "geteuid") and os.geteuid() == 0 and run("apt-get", "--version") is not None:
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-qy", "--no-install-recommends", "python3-venv")
        if run(sys.executable, "-m", "venv", "--clear", venv) is not None and has_pip(python):
            return python
    raise SetupError(
        "no virtual environment can be made, as this Python has neither venv nor pip and PyPI does not answer: "
        "install them (Debian: `apt-get install python3-venv`), then run make again"
    )


def install(python, arguments):
    """Run `pip install` quietly; its words are shown only when it fails."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q"]
    os.environ["PIP_ROOT_USER_ACTION"] = "ignore"
    commands = [[*pip, *arguments]]
    if "--group" in arguments and pip_version(python) < GROUPS_NEED_PIP:
        commands.insert(0, [*pip, "--upgrade", "pip>=25.1"])
    for command in commands:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            sys.stderr.write(done.stdout.decode(errors="replace"))
            raise SetupError("pip could not install what Crust needs; the lines above say why (is PyPI reachable?)")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description="make a virtual environment and install into it")
    parser.add_argument("venv", help="directory of the virtual environment")
    parser.add_argument("--editable", action="append", default=[], help="as pip's --editable")
    parser.add_argument("--group", action="append", default=[], help="dependency group of pyproject.toml")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        wanted, found = ".".join(map(str, OLDEST)), sys.version.split()[0]
        sys.exit("Crust needs Python %s or newer, this is %s: name another with `make PYTHON=...`" % (wanted, found))
    arguments = [word for path in options.editable for word in ("--editable", path)]
    arguments += [word for group in options.group for word in ("--group", group)]
    try:
        sys.stderr.write("setting up %s (only when something changed) ...\n" % options.venv)
        install(create(options.venv), arguments)
    except SetupError as error:
        sys.exit("set-up failed: %s" % error)


if __name__ == "__main__":
    main()
