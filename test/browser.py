"""A browser that nobody sees: Chromium's headless shell, from Debian, installed or unpacked (`bench.debian`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from bench.debian import environment, unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES: Final = ("chromium-headless-shell", "chromium-driver")

#: Where a phone's browser would be: in pixels of CSS.
PHONE: Final = (390, 844)


def browser(size: tuple[int, int] = (1280, 1000), *, dark: bool = False) -> Chrome:
    """
    Return a browser with a window of that size.

    Raises:
        UnavailableError: (of `bench.debian`) there is none, and none can be had.
    """
    root = unpacked(*PACKAGES)
    shell, driver = (
        found if found.exists() else Path(shutil.which(found.name) or found)
        for found in (root / "usr/lib/chromium/chromium-headless-shell", root / "usr/bin/chromedriver")
    )
    options = ChromeOptions()
    options.binary_location = str(shell)
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = Chrome(options=options, service=Service(str(driver), env=dict(_environment(root))))
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return made


def _environment(root: Path) -> Mapping[str, Any]:
    """Return one in which the libraries of *root* are found, those in folders of their own, too."""
    found = dict(environment(root))
    own = ":".join(str(path) for path in root.glob("usr/lib/*-linux-*/pulseaudio"))
    return {**found, "LD_LIBRARY_PATH": f"{found['LD_LIBRARY_PATH']}:{own}"}
