"""The dashboard, in a browser: looked at, clicked, and while a VM boots."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from twisted.trial.unittest import SkipTest

from bench.debian import UnavailableError
from test.programs.test_ctl import HOSTS
from test.programs.test_tap import HOST, PATIENCE, TOKEN, ProcessTestCase
from test.support.browser import PHONE, browser

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

VMS = """
control_token: token
starts_per_minute: 3
vms:
  - {name: www, dns: [www.jitsu.test, shop.jitsu.test], ip: 10.0.0.1, ttl: 30, boot_time: 0.1}
  - {name: bad, dns: bad.jitsu.test, ip: [10.0.0.2, "2001:db8::2"], faults: [start, stop]}
  - {name: slow, dns: slow.jitsu.test, ip: 10.0.0.3, boot_time: 3, response_delay: 1}
  - {name: "<b>&", dns: odd.jitsu.test, ip: 10.0.0.4}
"""

#: What a browser sends after its user has typed the token in; that dialogue is the browser's own.
SHOWS_TOKEN: Final = {"Authorization": f"Bearer {TOKEN}"}

#: What the colours of the VMs' states go through.
TINT = "return getComputedStyle(document.querySelector('#vms tbody')).filter"


class DashboardTests(ProcessTestCase):
    """What a person sees and does. One browser for all tests: it takes a second to begin."""

    driver: Chrome | None = None

    def setUp(self) -> None:
        """Serve, and look."""
        super().setUp()
        self.write_token()
        self.server = self.serve("--zone", "jitsu.zone", configuration=VMS)
        if DashboardTests.driver is None:
            try:
                DashboardTests.driver = browser()
                atexit.register(DashboardTests.driver.quit)  # trial knows no tearDownClass
            except UnavailableError as error:
                raise SkipTest(str(error)) from error
        self.open()

    # Looking.

    @property
    def page(self) -> Chrome:
        """The browser."""
        assert DashboardTests.driver is not None
        return DashboardTests.driver

    def open(self) -> None:
        """Open the dashboard and wait until it is live."""
        self.page.execute_cdp_cmd("Network.enable", {})
        self.page.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": SHOWS_TOKEN})
        self.page.get(f"http://{HOST}:{self.control}/")
        self.until(lambda: self.text("#live") == "live" and len(self.all("#vms tbody tr")) == 4)

    def all(self, selector: str) -> list[WebElement]:
        """Return all elements."""
        return self.page.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return an element's text."""
        return self.page.find_element(By.CSS_SELECTOR, selector).text

    def row(self, number: int) -> str:
        """Return the text of a VM's row."""
        return self.text(f"#vms tbody tr:nth-child({number})").replace("\n", " ")

    def until(self, holds: Callable[[], Any]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
                if holds():
                    return
            self.assertLess(time.monotonic(), end, self.text("body"))
            time.sleep(0.05)

    def shows(self, names: list[str]) -> bool:
        """Return whether exactly these VMs are shown."""
        return names == [one.text for one in self.all("#vms .name")]

    def click(self, number: int, label: str) -> None:
        """Press a button in a VM's row."""
        for button in self.all(f"#vms tbody tr:nth-child({number}) button"):
            if button.text == label:
                button.click()
                return
        self.fail(f"no button {label!r} in {self.row(number)!r}")

    def post(self, path: str) -> Any:
        """Do something as another client would, beside the browser."""
        return json.loads(self.fetch(path, "POST"))

    def fetch(self, path: str, method: str = "GET") -> bytes:
        """Return what another client is answered."""
        connection = HTTPConnection(HOST, self.control, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, headers=SHOWS_TOKEN)
            return connection.getresponse().read()

    def errors(self) -> list[str]:
        """Return what the browser complained of, but for requests that were refused as they should be."""
        said = [one["message"] for one in self.page.get_log("browser")]
        return [one for one in said if "409" not in one and "ERR_" not in one]

    def keep(self, name: str) -> None:
        """Keep a screenshot, if the environment asks for it."""
        folder = os.environ.get("JITSU_PICTURES")
        if folder:
            self.page.save_screenshot(str(Path(folder, f"{name}.png")))

    # Tests.

    def test_seen(self) -> None:
        """Every VM is there with its state, lease and counts; names are text, whatever is in them."""
        self.ask("www.jitsu.test")
        self.until(lambda: "up" in self.row(1))
        self.assertRegex(self.row(1), r"^www www.jitsu.test, shop.jitsu.test, 10.0.0.1 up \d+ s left 1 1 \d s ago")
        self.assertRegex(self.row(2), r"^bad bad.jitsu.test, 10.0.0.2, 2001:db8::2 off . 0 0 never")
        self.assertIn("<b>&", self.row(4))
        self.assertEqual([], self.all("#vms b"))
        self.assertEqual("All 4|Up 1|On the way 0|Failed 0|Off 3", "|".join(self.text("#filters").split("\n")))
        self.keep("seen")
        self.assertEqual([], self.errors())

    def test_clicked(self) -> None:
        """A VM is started, held, released and, when that is confirmed, stopped; the buttons follow."""
        self.click(1, "Start")
        self.until(lambda: "s left" in self.row(1))
        self.click(1, "Hold")
        self.until(lambda: "held" in self.row(1))
        self.click(1, "Release")
        self.until(lambda: "s left" in self.row(1))
        self.click(1, "Stop")
        self.assertIn("Sure?", self.row(1))
        self.assertIn("up", self.row(1))
        self.click(1, "Sure?")
        self.until(lambda: "off stopped by hand" in self.row(1))
        self.assertEqual([], self.errors())

    def test_refused_action(self) -> None:
        """A failed action is shown with the reason, and the VM as failed."""
        self.click(2, "Start")
        self.until(lambda: self.text("#said") == "bad: the start fails, as it was told to")
        self.until(lambda: "failed the start fails, as it was told to" in self.row(2))
        self.keep("failed")
        self.assertEqual([], self.errors())

    def test_while_it_boots(self) -> None:
        """A VM that boots is seen booting, step by step, by itself; then its timeline has where the time went."""
        self.click(3, "Start")
        self.until(lambda: "starting the hypervisor starts it" in self.row(3))
        self.until(lambda: "booting" in self.text("#activations li:first-child"))
        self.assertEqual(1, len(self.all("#activations .now")))
        self.keep("boots")
        self.until(lambda: "waiting its guest boots" in self.row(3))
        self.assertEqual(1, len(self.all("#activations .hypervisor")))
        self.until(lambda: "up" in self.row(3))
        self.until(lambda: not self.all("#activations .now"))
        words = self.text("#activations li:first-child")
        self.assertRegex(words.replace("\n", " "), r"slow booted for a person, \d s ago [34]\d{3} ms")
        widths = [one.size["width"] for one in self.all("#activations .timeline > .hypervisor, #activations .guest")]
        self.assertTrue(2 < widths[0] / widths[1] < 4, widths)
        bar = self.all("#activations .timeline")[0].get_attribute("aria-label") or ""
        self.assertRegex(bar, r"turn: \d+ ms, hypervisor: 3\d{3} ms, guest: 1\d{3} ms, answered: 4\d{3} ms")
        self.assertEqual([], self.errors())

    def test_refusals(self) -> None:
        """Refused clients are shown with the reason, and counted."""
        self.assertIn("Nobody was refused a start.", self.text("main"))
        for name in ("www", "slow"):
            self.post(f"/v1/vms/{name}/start")
        for _ in range(4):
            self.ask("bad.jitsu.test")
            self.post("/v1/vms/www/stop")
            self.ask("www.jitsu.test")
        self.until(lambda: "this network has used up its starts for now" in self.text("#refusals"))
        self.assertRegex(self.text("#refusals").replace("\n", " "), r"www this network .* 127\.0\.0\.0/24 \d \d s ago")
        self.assertNotIn("Nobody was refused", self.text("main"))
        self.keep("refused")

    def test_why(self) -> None:
        """A click on a VM's name shows why it is up or down, and the last decisions; it is updated, too."""
        self.ask("www.jitsu.test")
        self.until(lambda: "up" in self.row(1))
        self.click(1, "www")
        self.until(lambda: self.text("#details-title") == "www is up")
        self.assertIn("Started for 127.0.0.1, A www.jitsu.test", self.text("#details-why"))
        self.assertRegex(self.text("#details-decisions"), r"queued for 127\.0\.0\.1, A www\.jitsu\.test")
        self.keep("why")
        self.post("/v1/vms/www/stop")
        self.until(lambda: self.text("#details-title") == "www is off")
        self.page.find_element(By.CSS_SELECTOR, "#details .close").click()
        self.until(lambda: not self.page.find_element(By.ID, "details").is_displayed())
        self.assertEqual([], self.errors())

    def test_search(self) -> None:
        """VMs are found by name, address and state."""
        search = self.page.find_element(By.ID, "search")
        for words, expected in (("shop", ["www"]), ("2001:", ["bad"]), ("10.0.0", ["www", "bad", "slow", "<b>&"]),
                                ("nothing", [])):
            search.clear()
            search.send_keys(words)
            self.until(functools.partial(self.shows, expected))
        self.assertIn("None like that.", self.text("main"))
        search.clear()
        search.send_keys(" ")
        self.post("/v1/vms/www/start")
        self.page.find_element(By.CSS_SELECTOR, "#filters [data-kind=up]").click()
        self.until(functools.partial(self.shows, ["www"]))

    def test_lost(self) -> None:
        """That Jitsu is gone is seen, and nothing is green; when it is back, so is the dashboard, by itself."""
        self.assertEqual("none", self.page.execute_script(TINT))
        self.end(self.server)
        self.until(lambda: self.text("#live") == "connection lost, trying again")
        self.assertEqual("grayscale(1)", self.page.execute_script(TINT))
        self.click(1, "Start")
        self.until(lambda: self.text("#said") == "Jitsu does not answer.")
        self.serve("--zone", "jitsu.zone", configuration=VMS.replace("name: www", "name: web"))
        self.until(lambda: self.text("#live") == "live" and "web" in self.row(1))
        self.assertEqual("none", self.page.execute_script(TINT))

    def test_hosts(self) -> None:
        """Where there are hosts, they are shown with what they have, and counted."""
        self.assertFalse(self.page.find_element(By.ID, "members-section").is_displayed())
        self.end(self.server)
        self.serve("--zone", "jitsu.zone", configuration=f"control_token: token\n{HOSTS}")
        self.until(lambda: [row.text for row in self.all("#members tbody tr")] == [
            "left host well 0", "right host well 0"])
        self.post("/v1/vms/www/start")
        self.post("/v1/hosts/right/drain")
        self.page.refresh()
        self.until(lambda: [row.text for row in self.all("#members tbody tr")] == [
            "left host well 1", "right host drained 0"])
        lines = self.fetch("/metrics").decode().splitlines()
        for line in ('jitsu_host_vms{host="left"} 1.0', 'jitsu_host_vms{host="right"} 0.0',
                     'jitsu_host_up{host="left"} 1.0'):
            self.assertIn(line, lines)
        (node,) = (line for line in lines if line.startswith("jitsu_node_vms{"))
        self.assertTrue(node.endswith(" 1.0"), node)

    def test_password_in_the_address(self) -> None:
        """A page that was opened with the password in its address asks as any other does."""
        self.page.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {}})
        self.page.get(f"http://operator:{TOKEN}@{HOST}:{self.control}/")
        self.until(lambda: self.text("#live") == "live" and len(self.all("#vms tbody tr")) == 4)

    def test_phone(self) -> None:
        """On a phone, in the dark, all of it is there and fits: nothing is wider than the screen."""
        self.post("/v1/vms/www/start")
        for dark in (False, True):
            narrow = browser(PHONE, dark=dark)
            self.addCleanup(narrow.quit)
            wide, DashboardTests.driver = self.page, narrow
            try:
                self.open()
                self.until(lambda: "up" in self.row(1))
                self.keep(f"phone-{'dark' if dark else 'light'}")
                self.assertEqual(PHONE[0], narrow.execute_script("return document.documentElement.scrollWidth"))
                ground = narrow.execute_script("return getComputedStyle(document.body).backgroundColor")
                self.assertEqual("rgb(16, 21, 27)" if dark else "rgb(246, 247, 249)", ground)
                for button in self.all("#vms tbody tr:first-child button")[1:]:
                    self.assertGreaterEqual(button.size["height"], 32)
                self.assertEqual([], self.errors())
            finally:
                DashboardTests.driver = wide
