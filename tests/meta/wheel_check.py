"""Checks of an installed wheel, run by `.ci/run` in a clean environment and a folder without `src`.

`bare`: no extra is installed. `cli`: the command line is.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path


def main() -> None:
    """Import the packages, load our plugins, run the console script; exit 1 with the reason otherwise."""
    import tokencache
    import tokencache_qpay

    home = Path(sys.prefix).resolve()
    for package in (tokencache, tokencache_qpay):
        where = Path(str(package.__file__)).resolve()
        _require(home in where.parents, f"{package.__name__} was imported from {where}, not from the wheel")
        _require(resources.files(package).joinpath("py.typed").is_file(), f"{package.__name__} has no py.typed")
    files = metadata.files("tokencache") or []
    own = {file for file in files if file.suffix == ".py"}
    tops = {file.parts[0] for file in own}
    _require(tops == {"tokencache", "tokencache_qpay"}, f"it brings other packages: {sorted(tops)}")
    _require(not [file for file in own if "simulat" in str(file)], "it holds the simulator")
    from tokencache.providers.presets import presets

    _require("zoom" in presets(), "the presets' data are not in it")
    from tokencache.plugins import BACKENDS, PROVIDERS, known, load_provider_factory, open_backend

    _require({"memory", "file"} <= {plugin.name for plugin in known(BACKENDS)}, "backends are missing")
    _require({plugin.version for plugin in known(BACKENDS)} == {metadata.version("tokencache")}, "another version")
    _require(bool(open_backend("memory://")), "memory:// does not open")
    for plugin in known(PROVIDERS):
        _require(callable(load_provider_factory(plugin.name)), f"the provider {plugin.name} is not callable")
    try:
        tokencache.TokenCache("redis://localhost")
    except tokencache.BackendNotInstalled as error:
        _require("pip install 'tokencache[redis]'" in str(error), f"no install line in: {error}")
    else:
        sys.exit("wheel: a missing client library was not noticed")
    script = Path(sys.executable).with_name("tokencache")
    ran = subprocess.run([script, "plugins"], capture_output=True, text=True, check=False)
    if sys.argv[1] == "bare":
        _require(ran.returncode == 2, f"without the extra the script exited {ran.returncode}")
        _require("pip install 'tokencache[cli]'" in ran.stderr, f"no install line in: {ran.stderr!r}")
    else:
        _require(ran.returncode == 0, f"`tokencache plugins` exited {ran.returncode}: {ran.stderr}")
        _require("qpay" in ran.stdout, f"`tokencache plugins` does not list qpay: {ran.stdout!r}")
        ran = subprocess.run([script, "new", "provider", "acme"], capture_output=True, text=True, check=False)
        _require(ran.returncode == 0, f"`tokencache new provider` exited {ran.returncode}: {ran.stderr}")
    print(f"wheel, {sys.argv[1]}: ok ({len(known(BACKENDS))} backends, {len(known(PROVIDERS))} providers)")


def _require(held: bool, message: str) -> None:
    """Exit with ``message`` unless the claim held."""
    if not held:
        sys.exit(f"wheel: {message}")


if __name__ == "__main__":
    main()
