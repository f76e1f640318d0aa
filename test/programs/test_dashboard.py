"""The dashboard, in a browser: looked at, clicked, and while a VM boots."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from twisted.trial.unittest import SkipTest

from bench.debian import UnavailableError
from jitsu_tw import __version__
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

#: Three hundred VMs, of which the start of the last fails; and none.
MANY = "control_token: token\nstarts_per_minute: 0\nvms:\n" + "".join(
    f"  - {{name: vm{number}, dns: vm{number}.jitsu.test, ip: 10.1.{number // 250}.{number % 250 + 1}"
    f"{', faults: [start]' if number == 299 else ''}}}\n"
    for number in range(300)
)
NONE = "control_token: token\n"

#: A VM, and two templates.
SITES = """
control_token: token
persistdb: state.git
starts_per_minute: 0
vms:
  - {name: www, dns: www.jitsu.test, ip: 10.0.0.1}
templates:
  - {name: site, dns: "*.sites.jitsu.test", pool: 10.1.0.0/24, exists: "*", new_per_minute: 0, max: 200, idle: 300}
  - {name: shop, dns: "*.shops.jitsu.test", pool: 10.2.0.0/24, exists: "*"}
"""

#: What a browser sends after its user has typed the token in; that dialogue is the browser's own.
SHOWS_TOKEN: Final = {"Authorization": f"Bearer {TOKEN}"}

#: What the colours of the VMs' states go through.
TINT = "return getComputedStyle(document.querySelector('#vms tbody')).filter"

#: The elements that end to the right of what is within the border of their section.
WIDER = """return [...document.querySelectorAll("section")].flatMap(section => {
  const right = section.getBoundingClientRect().right - parseFloat(getComputedStyle(section).paddingRight);
  return [...section.querySelectorAll("*:not(pre *)")].filter(
    one => one.getClientRects().length && one.getBoundingClientRect().right > right + .5).map(one => one.outerHTML);
})"""

#: How many lines the text of an element takes.
LINES = "const one = document.createRange(); one.selectNodeContents(arguments[0]); return one.getClientRects().length"


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
        self.page.get_log("browser")  # what other tests have left there
        self.open()

    # Looking.

    @property
    def page(self) -> Chrome:
        """The browser."""
        assert DashboardTests.driver is not None
        return DashboardTests.driver

    def open(self, rows: int = 4, place: str = "") -> None:
        """Open the dashboard at *place* and wait until it is live and has so many *rows*."""
        self.page.execute_cdp_cmd("Network.enable", {})
        self.page.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": SHOWS_TOKEN})
        self.page.get("about:blank")  # a new place alone is no new page
        self.page.get(f"http://{HOST}:{self.control}/{place}")
        self.until(lambda: self.text("#live") == "live" and len(self.all("#vms tbody tr")) == rows)

    def serve_anew(self, configuration: str) -> None:
        """Serve other VMs."""
        self.end(self.server)
        self.server = self.serve("--zone", "jitsu.zone", configuration=configuration)

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
        self.press(f"#vms tbody tr:nth-child({number})", label)

    def press(self, within: str, label: str) -> None:
        """Press a button."""
        for button in self.all(f"{within} button"):
            if button.text == label:
                button.click()
                return
        self.fail(f"no button {label!r} in {self.text(within)!r}")

    def where(self) -> str:
        """Return what the address has behind the path."""
        return self.page.current_url.partition(f":{self.control}/")[2]

    def is_shown(self, selector: str) -> bool:
        """Return whether an element is displayed."""
        return self.page.find_element(By.CSS_SELECTOR, selector).is_displayed()

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
        filters = "All 4|Failed 0|Up 1|On the way 0|Prepared 0|Asleep 0|Off 3"
        self.assertEqual(filters.split("|"), self.text("#filters").split("\n"))
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
        self.until(lambda: "failed the start fails, as it was told to" in self.row(1))
        self.assertTrue(self.shows(["bad", "www", "slow", "<b>&"]), "the failed one is first")
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
        self.assertIn("No VM is like that.", self.text("main"))
        self.page.find_element(By.ID, "show-all").click()
        self.until(functools.partial(self.shows, ["www", "bad", "slow", "<b>&"]))
        self.post("/v1/vms/www/start")
        self.page.find_element(By.CSS_SELECTOR, "#filters [data-kind=up]").click()
        self.until(functools.partial(self.shows, ["www"]))

    def test_address(self) -> None:
        """The filter, the search and the order are in the page's address, which leads there, and back again."""
        self.post("/v1/vms/www/start")
        self.page.find_element(By.CSS_SELECTOR, "#filters [data-kind=off]").click()
        self.page.find_element(By.ID, "search").send_keys("10.0")
        self.press("#vms thead", "VM")
        self.until(functools.partial(self.shows, ["<b>&", "bad", "slow"]))
        self.assertEqual("#filter=off&q=10.0&sort=name", self.where())
        self.page.back()
        self.until(functools.partial(self.shows, ["bad", "slow", "<b>&"]))
        self.open(1, "#filter=off&q=10.0.0.3&sort=-name")
        self.assertTrue(self.shows(["slow"]))
        self.open(0, "#filter=failed")
        self.assertEqual(["Failed 0"], [one.text for one in self.all("#filters [aria-pressed=true]")])

    def test_sorted(self) -> None:
        """A press on a column's head sorts by it, a second one the other way round, a third one as before."""
        self.post("/v1/vms/slow/start")
        for place, names in (("#sort=-starts", ["slow", "www", "bad", "<b>&"]),
                             ("#sort=starts", ["www", "bad", "<b>&", "slow"]), ("", ["www", "bad", "slow", "<b>&"])):
            self.press("#vms thead", "Starts")
            self.until(functools.partial(self.shows, names))
            self.assertEqual(place, self.where())
            sign = self.page.find_element(By.CSS_SELECTOR, "#vms th.number").get_attribute("aria-sort")
            self.assertEqual({"-": "descending", "s": "ascending", "": None}[place[6:7]], sign)

    def test_keyboard(self) -> None:
        """Who holds a VM by the keyboard stays at its button, also when its row moves up for that."""
        self.open(4, "#sort=state")
        self.until(lambda: self.shows(["www", "bad", "slow", "<b>&"]))
        self.page.execute_script("arguments[0].focus()", self.all("#vms tbody tr:nth-child(4) .actions button")[2])
        self.page.switch_to.active_element.send_keys(" ")
        self.until(lambda: self.shows(["<b>&", "www", "bad", "slow"]) and "Release" in self.row(1))
        self.assertEqual("Release", self.page.switch_to.active_element.text)
        self.page.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
        self.assertEqual("Stop", self.page.switch_to.active_element.text)

    def test_details(self) -> None:
        """A VM has an address; there are its configuration and evidence, and it is started and stopped there."""
        self.open(4, "#vm=www")
        self.until(lambda: self.text("#details-title").endswith("www is off"))
        self.assertEqual(["dns www.jitsu.test, shop.jitsu.test", "ttl 30"], [
            line.text for line in self.all("#details-configuration tbody tr") if line.text[:3] in {"dns", "ttl"}])
        self.assertIn("Nothing is known of its use now.", self.text("#details"))
        self.press("#details", "Start")
        self.until(lambda: self.text("#details-title").endswith("www is up"))
        self.ask("www.jitsu.test")
        self.until(lambda: "a question for its name" in self.text("#details-uses"))
        self.assertRegex(self.text("#details-starts"), r"\d\d:\d\d:\d\d\nbooted after \d+ ms, for a person")
        title = self.page.find_element(By.CSS_SELECTOR, "#details-starts time").get_attribute("title") or ""
        self.assertRegex(title, r"20\d\d at \d\d:\d\d:\d\d \S+", "the date and the zone")
        self.until(lambda: self.all("#details-day rect.up"))
        label = self.page.find_element(By.CSS_SELECTOR, "#details-day svg").get_attribute("aria-label") or ""
        self.assertRegex(label, "Last 24 hours: up for about [23] min")
        self.keep("details")
        self.press("#details", "Stop")
        self.press("#details", "Sure?")
        self.until(lambda: self.text("#details-title").endswith("www is off"))
        self.page.find_element(By.CSS_SELECTOR, "#details .close").click()
        self.until(lambda: not self.is_shown("#details"))
        self.assertEqual("", self.where())
        self.page.back()
        self.until(lambda: self.is_shown("#details"))
        self.open(4, "#vm=nobody")
        self.until(lambda: "no VM of that name" in self.text("#said"))
        self.assertFalse(self.is_shown("#details"))
        self.assertEqual("", self.where())

    def test_long(self) -> None:
        """Of hundreds of long names, the first are shown; nothing beside them, or beside long values, is squeezed."""
        names = ", ".join(f"{'l' * 60}.{'m' * 60}.n{number}.jitsu.test" for number in range(200))
        self.serve_anew(VMS + f"  - {{name: {'x' * 250}, dns: [{names}], ip: 10.0.0.5}}\n")
        self.open(5)
        row = self.all("#vms tbody tr")[4]
        self.assertIn("n2.jitsu.test, 197 more, 10.0.0.5", row.text.replace("\n", "")[:2000])
        self.assertLess(row.size["height"], 500)
        self.assertGreater(row.find_element(By.CSS_SELECTOR, ".state-cell").size["width"], 120)
        row.find_element(By.CSS_SELECTOR, ".name").click()
        self.until(lambda: self.is_shown("#details"))
        self.assertIn("190 more", self.text("#details-facts"))
        key, _, origin = self.all("#details-configuration tbody tr:first-child td")
        self.assertEqual(1, self.page.execute_script(LINES, key))
        self.assertGreater(origin.size["width"], 100)

    def test_none(self) -> None:
        """Without a VM, the page says how one is added; the example is a configuration."""
        self.serve_anew(NONE)
        self.open(0)
        self.until(lambda: self.is_shown("#empty"))
        self.assertFalse(self.is_shown("#vms"))
        (added,) = yaml.safe_load(self.text("#empty pre"))["vms"]
        self.assertEqual({"name", "dns", "ip"}, added.keys())
        Path(self.folder, "example.yaml").write_text(self.text("#empty pre"))
        checked = self.jitsuctl("check", "--config", "example.yaml")
        self.assertEqual(0, checked.returncode, checked.stdout + checked.stderr)
        self.assertEqual([], self.errors())

    def test_shows_only(self) -> None:
        """Where there is no token, the page says that it only shows, and no button can be pressed."""
        self.assertFalse(self.is_shown("#shows-only"))
        self.serve_anew(VMS.replace("control_token: token\n", ""))
        self.open()
        self.until(lambda: self.is_shown("#shows-only"))
        self.assertFalse(any(button.is_enabled() for button in self.all("#vms tbody .actions button")))

    def test_many(self) -> None:
        """Of many VMs there is a page; only the VMs on it are asked for again and again; the failed ones are first."""
        self.serve_anew(MANY)
        self.open(25)
        self.assertEqual("1 to 25 of 300", self.text("#range"))
        self.page.find_element(By.ID, "after").click()
        self.until(lambda: self.text("#vms .name") == "vm25")
        self.assertEqual("#page=2", self.where())
        self.page.execute_script("performance.clearResourceTimings()")
        self.ask("vm26.jitsu.test")
        self.until(lambda: "1 0 s ago" in self.row(2) or "1 1 s ago" in self.row(2))
        asked = "return performance.getEntriesByType('resource').map(one => one.name).filter(one => /vms/.test(one))"
        self.until(lambda: self.page.execute_script(asked))
        for url in self.page.execute_script(asked):
            self.assertEqual(25, url.count("name="), url)
        self.post("/v1/vms/vm299/start")
        self.open(25)
        self.assertIn("vm299", self.row(1))
        self.open(25, "#page=99")
        self.assertEqual("276 to 300 of 300", self.text("#range"))
        self.assertEqual([], self.errors())

    def serve_sites(self, number: int) -> None:
        """Serve templates, one of which has made that *number* of VMs."""
        self.serve_anew(SITES)
        for one in range(number):
            self.ask(f"a{one}.sites.jitsu.test")

    def group(self, number: int = 1) -> str:
        """Return the text of the row of a template."""
        return self.all("#vms tr.group")[number - 1].text.replace("\n", " ")

    def test_templates(self) -> None:
        """The VMs of a template are below a row of its own, which tells how many there are; it opens and closes."""
        self.serve_sites(3)
        self.open(3)
        self.until(lambda: "site 3 VMs 3 up" in self.group())
        self.assertIn("*.sites.jitsu.test, at most 200 VMs, 251 free addresses", self.group())
        self.assertRegex(self.group(2), r"^shop 0 VMs \*\.shops")
        self.assertTrue(self.shows(["www"]))
        self.press("#vms tbody", "site")
        self.until(lambda: self.shows(["www", "a0.site", "a1.site", "a2.site"]))
        self.assertEqual("#open=site", self.where())
        self.keep("templates")
        self.ask("new.sites.jitsu.test")
        self.until(lambda: self.shows(["www", "a0.site", "a1.site", "a2.site", "new.site"]))
        self.press("#vms tbody", "site")
        self.until(lambda: self.shows(["www"]))
        self.assertEqual([], self.errors())

    def test_of_a_template(self) -> None:
        """The VMs of one template are shown, or those of none; a search finds VMs in templates that are closed."""
        self.serve_sites(3)
        self.open(3)
        self.until(lambda: self.is_shown("#template"))
        for choice, names, where in (
            ("Of site", ["a0.site", "a1.site", "a2.site"], "site"), ("Without a template", ["www"], "."),
        ):  # fmt: skip
            Select(self.page.find_element(By.ID, "template")).select_by_visible_text(choice)
            self.until(functools.partial(self.shows, names))
            self.assertEqual(f"#template={where}", self.where())
        self.open(2, "#q=a1")
        self.assertTrue(self.shows(["a1.site"]))
        self.open(0, "#filter=failed")
        self.assertIn("No VM is like that.", self.text("main"))

    def test_forget(self) -> None:
        """A VM of a template is forgotten when that is confirmed, and is gone then; another VM cannot be."""
        self.serve_sites(2)
        self.open(3, "#vm=www")
        self.until(lambda: self.text("#details-title").startswith("www is"))
        self.assertFalse(self.is_shown("#details-actions .forget"))
        self.open(3, "#vm=a0.site")
        self.until(lambda: self.text("#details-title") == "a0.site is up")
        self.assertIn("The template site made it for 127.0.0.1", self.text("#details-why"))
        self.assertRegex(self.text("#details-decisions"), r"made for 127\.0\.0\.1")
        self.press("#details", "Forget")
        self.keep("forget")
        self.assertEqual("a0.site is up", self.text("#details-title"))
        self.press("#details", "Sure?")
        self.until(lambda: not self.is_shown("#details"))
        self.until(lambda: "1 VM" in self.group())
        self.assertIn(b"no VM of that name", self.fetch("/v1/vms/a0.site"))
        self.assertEqual([], [one for one in self.errors() if "404" not in one])

    def test_many_of_a_template(self) -> None:
        """Of a template with many VMs there is a page, which has the row of the template, too."""
        self.serve_sites(60)
        self.open(3)
        self.until(lambda: "60 VMs" in self.group())
        self.press("#vms tbody", "site")
        self.until(lambda: self.text("#range") == "1 to 25 of 63")
        self.page.find_element(By.ID, "after").click()
        self.until(lambda: self.text("#range") == "26 to 50 of 63")
        self.assertIn("site 60 VMs", self.group())
        self.assertEqual(26, len(self.all("#vms tbody tr")))
        self.assertEqual([], self.errors())

    def test_many_long(self) -> None:
        """VMs whose names are long in an address are asked for in several requests, which the endpoint takes."""
        self.serve_anew(re.sub(r"name: vm", "name: " + 120 * "\u05d0", MANY))
        self.open(25)
        self.page.execute_script("performance.clearResourceTimings()")
        asked = ("return performance.getEntriesByType('resource').filter(one => one.responseStatus === 200)"
                 ".map(one => one.name).filter(one => /vms.name/.test(one))")  # fmt: skip
        self.until(lambda: sum(url.count("name=") for url in self.page.execute_script(asked)) >= 25)
        self.assertEqual([], self.errors())

    def test_summary(self) -> None:
        """At the top is how many VMs are up, for how long they were not, and how the starts of the day went."""
        self.post("/v1/vms/www/start")
        self.until(lambda: self.text("#running") == "1 of 4 VMs")
        self.until(lambda: self.text("#starts") == "1 start today")
        self.assertRegex(self.text("#starts-rest"), r"^half within \d+ ms$")
        self.assertRegex(self.text("#saved"), r"^\d+ s$")
        self.assertEqual(14, len(self.all("#days li")))
        self.assertEqual(1, len(self.all("#days .up")))
        footer = self.text("footer")
        self.assertIn(f"Jitsu {__version__}", footer)
        self.assertIn("jitsu.test", footer)
        self.assertIn(f"TCP {HOST} port {self.control}", footer)

    def test_standins(self) -> None:
        """Where there is a Synjitsu, what it stands in for and what it holds is shown, and what it has counted."""
        self.assertFalse(self.is_shown("#standins-section"))
        known = {"configured": True, "error": None, "counters": {"held_packets": 1234, "never": 0}, "standins": [
            {"ip": "10.0.0.1", "mac": "52:54:00:00:00:01", "state": "standing in", "handover": "wire", "held": 3}]}
        script = f"""const real = fetch; window.fetch = (url, more) => String(url).endsWith("v1/standins")
            ? Promise.resolve(new Response(JSON.stringify({json.dumps(known)}))) : real(url, more);"""
        added = self.page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        self.addCleanup(self.page.execute_cdp_cmd, "Page.removeScriptToEvaluateOnNewDocument", added)
        self.open()
        self.until(lambda: self.text("#standins-title") == "Synjitsu stands in for 1 address")
        self.assertEqual("It holds 3 packets now.", self.text("#standins-note"))
        self.assertEqual(["10.0.0.1 standing in wire 3"], [row.text for row in self.all("#standins tbody tr")])
        self.page.find_element(By.CSS_SELECTOR, "#counters summary").click()
        self.assertEqual("held packets 1,234", self.text("#counters tbody"))
        self.keep("standins")

    def test_one_scale(self) -> None:
        """The bars of activations have one scale, which is said: a short one is short."""
        self.post("/v1/vms/www/start")
        self.post("/v1/vms/slow/start")
        self.until(lambda: len(self.all("#activations li")) == 2 and not self.all("#activations .now"))
        self.assertRegex(self.text("#scale"), r"^The whole width is \d+ ms\.$")
        slow, www = (self.page.execute_script("return [...arguments[0].children].reduce((sum, part) => "
            "sum + (part.className === 'marker' ? 0 : part.offsetWidth), 0)", bar)
            for bar in self.all("#activations .timeline"))
        self.assertGreater(slow, 4 * www)

    def test_lost(self) -> None:
        """That Jitsu is gone is seen, and nothing is green; when it is back, so is the dashboard, by itself."""
        self.assertEqual("none", self.page.execute_script(TINT))
        self.end(self.server)
        self.until(lambda: self.text("#live") == "connection lost, trying again")
        self.assertEqual("grayscale(1)", self.page.execute_script(TINT))
        buttons = self.all("#vms tbody .actions button")
        self.assertEqual([False] * 12, [button.is_enabled() for button in buttons])
        self.keep("lost")
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
        for dark in (False, True):
            narrow = browser(PHONE, dark=dark)
            self.addCleanup(narrow.quit)
            wide, DashboardTests.driver = self.page, narrow
            try:
                for configuration, rows in ((NONE, 0), (VMS, 4), (SITES, 5), (MANY, 25)):
                    self.serve_anew(configuration)
                    if configuration is SITES:
                        self.ask("a.sites.jitsu.test")
                        self.ask(f"{'b' * 63}.sites.jitsu.test")
                    elif rows:
                        self.post(f"/v1/vms/{'www' if rows == 4 else 'vm0'}/start")
                    self.open(rows, "#open=site" if configuration is SITES else "")
                    self.until(functools.partial(self.is_shown, "#summary" if rows else "#empty"))
                    self.keep(f"phone-{rows}-{'dark' if dark else 'light'}")
                    self.assertEqual(PHONE[0], narrow.execute_script("return document.documentElement.scrollWidth"))
                    self.assertEqual([], narrow.execute_script(WIDER), "wider than its section")
                ground = narrow.execute_script("return getComputedStyle(document.body).backgroundColor")
                self.assertEqual("rgb(16, 21, 27)" if dark else "rgb(246, 247, 249)", ground)
                for button in self.all("#vms tbody tr:first-child button")[1:]:
                    self.assertGreaterEqual(button.size["height"], 32)
                self.assertEqual([], self.errors())
            finally:
                DashboardTests.driver = wide
