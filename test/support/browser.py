"""A browser that nobody sees: Chromium's headless shell, from Debian, installed or unpacked (`bench.debian`)."""

from __future__ import annotations

from typing import Final

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from bench.debian import environment, unpacked

#: With what Chromium looks for beside itself, and what its fonts are found by: without any, its pages crash.
PACKAGES: Final = (
    "chromium-headless-shell", "chromium-driver", "chromium-common", "fontconfig-config", "fonts-dejavu-core",
)

#: Where a phone's browser would be: in pixels of CSS.
PHONE: Final = (390, 844)


def browser(size: tuple[int, int] = (1280, 1000), *, dark: bool = False) -> Chrome:
    """
    Return a browser with a window of that size.

    Raises:
        UnavailableError: (of `bench.debian`) there is none, and none can be had.
    """
    root = unpacked(*PACKAGES)
    options = ChromeOptions()
    options.binary_location = str(root / "usr/lib/chromium/chromium-headless-shell")
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = Chrome(options=options, service=Service(str(root / "usr/bin/chromedriver"), env=dict(environment(root))))
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return made
