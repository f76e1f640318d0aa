"""The examples in ``conf/``: each is tried as far as it can be here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import libvirt
import yaml
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.definition import fill, values_of
from jitsu_tw.backends.libvirt import LibvirtBackend
from jitsu_tw.config.build import load
from jitsu_tw.config.vms import example
from jitsu_tw.tap import Options
from synjitsu_tw.tap import Options as SynjitsuOptions
from test.support import question, vm
from test.support.control import Desk, site

ROOT: Final = Path(__file__).parents[2]
CONF: Final = ROOT / "conf"


class ExamplesTests(SynchronousTestCase):
    """``conf/``."""

    def test_configuration(self) -> None:
        """The example loads, with its zone; and so does each key in it that is commented out."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        for name in ("jitsu.zone", "batch.xml"):
            shutil.copy(CONF / name, folder)
        text = (CONF / "jitsu.yaml").read_text()
        (folder / "token").write_text("x" * 40)
        (folder / "token").chmod(0o600)
        every = re.sub(r"^# (\w+: )", r"\1", text, flags=re.MULTILINE)
        every = every.replace("/etc/jitsu/token", str(folder / "token"))
        every = re.sub(r"^control: \[.*$", "", every, flags=re.MULTILINE)
        self.assertIn("\ncontrol_token: ", every)
        for said in (text, every):
            (folder / "jitsu.yaml").write_text(said)
            settings, _ = load({"zones": [str(folder / "jitsu.zone")]})
            self.assertEqual(["www", "batch"], [one.name for one in settings.vms])

    def test_guests(self) -> None:
        """Each guest's XML is taken by libvirt, and the lines for jitsu.yaml that stand in it make a VM."""
        with libvirt.open("test:///default") as there:
            for path in sorted(set(CONF.glob("*.xml")) - {CONF / "site.xml"}):
                text = path.read_text()
                domain = there.defineXML(text.replace("domain type='kvm'", "domain type='test'"))
                self.assertEqual(path.stem, domain.name())
                domain.undefine()
                for line in re.findall(r"^ +- (\{.*\})$", text, flags=re.MULTILINE):
                    said = yaml.safe_load(line)
                    self.assertEqual((path.stem, path.name), (said["name"], said["define"]))
                    pairs = {**said, "define": str(path), "connect": "test:///default"}
                    settings, _ = load({"listen": "5300"}, [",".join(f"{key}={value}" for key, value in pairs.items())])
                    self.assertEqual((), LibvirtBackend("test:///default").examine(settings.vms[0]))
        self.assertEqual({"batch", "mirage", "nanos", "site", "unikraft"}, {path.stem for path in CONF.glob("*.xml")})

    def test_sites(self) -> None:
        """The template loads, also with each key in it that is commented out; libvirt takes what it defines."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        shutil.copy(CONF / "site-exists", folder)
        text, definition = (CONF / "sites.yaml").read_text(), (CONF / "site.xml").read_text()
        every = re.sub(r"^    # (\w+: )", r"    \1", text, flags=re.MULTILINE)
        self.assertIn("\n    disk: ", every)
        disk = "<disk type='file'><source file='${disk}'/><target dev='vda'/></disk></devices>"
        for said, xml in ((text, definition), (every, definition.replace("</devices>", disk))):
            (folder / "sites.yaml").write_text(said)
            (folder / "site.xml").write_text(xml)
            settings, _ = load({}, (), folder / "sites.yaml")
            (template,) = settings.templates
            vm = example(template)
            filled = fill(xml.replace("domain type='kvm'", "domain type='test'"), values_of(vm))
            with libvirt.open("test:///default") as there:
                domain = there.defineXML(filled)
                self.assertEqual((vm.name, str(vm.uuid)), (domain.name(), domain.UUIDString()))
                self.assertIn(f"netdev.ip={vm.ip[0]}/16:10.1.0.1:::example ", domain.XMLDesc())
                domain.undefine()

    def test_site_exists(self) -> None:
        """The program tells which sites exist, and that it cannot tell."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        program = folder / "site-exists"
        program.write_text((CONF / "site-exists").read_text().replace("/srv/sites", f"{folder}/sites"))
        program.chmod(0o755)

        def ask(label: str) -> tuple[int, str]:
            run = subprocess.run([program, label], capture_output=True, text=True, check=False)
            return run.returncode, run.stderr

        self.assertEqual((2, f"{folder}/sites is not there\n"), ask("alice"))
        (folder / "sites" / "alice").mkdir(parents=True)
        self.assertEqual([(0, ""), (1, "")], [ask("alice"), ask("mallory")])

    def test_units(self) -> None:
        """The units are rated as their comments claim, and start existing programs."""
        for path in sorted(CONF.glob("*.service")):
            text = path.read_text()
            (noted,) = re.findall(r"rates this ([\d.]+), OK", text)
            run = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", path],
                                 capture_output=True, text=True, check=True)  # fmt: skip
            (found,) = re.findall(rf"exposure level for {path.name}: ([\d.]+) OK", run.stdout)
            self.assertLessEqual(float(found), float(noted) + 0.2, "another systemd may see it a little differently")
            (start,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
            options = re.findall(r'^Environment="OPTIONS=(.*)"$', text, flags=re.MULTILINE)
            name, *arguments = start.replace("$OPTIONS", *options).split() if options else start.split()
            # What may be written besides: the system is read-only for the unit. The log of queries is in Jitsu's.
            there = set(re.findall(r"^(\w+)Directory=jitsu$", text, flags=re.MULTILINE))
            folders = {"jitsu": {"State", "Runtime", "Logs", "Configuration"}, "synjitsu": {"Runtime"}}
            self.assertEqual(folders[name], there)
            {"jitsu": Options, "synjitsu": SynjitsuOptions}[name]().parseOptions(arguments)

    def test_numbers(self) -> None:
        """The dashboard and the alerts for Prometheus ask for numbers that there are, or that Synjitsu adds."""
        desk = Desk(vm(), templates=(site(),))
        desk.fleet.summons.summon("www", question())
        there = set(re.findall(r"^(jitsu_\w+)", desk.ask("/metrics").body.decode(), flags=re.MULTILINE))
        there |= {"jitsu_synjitsu_up", "jitsu_synjitsu_held", "jitsu_synjitsu_standins"}
        there |= {"jitsu_dns_responses_total", "jitsu_dns_zone_responses_total"}  # once there is a response
        grafana = json.loads((CONF / "grafana.json").read_text())
        asked = [target["expr"] for panel in grafana["panels"] for target in panel["targets"]]
        for group in yaml.safe_load((CONF / "jitsu-alerts.yml").read_text())["groups"]:
            asked += [rule["expr"] for rule in group["rules"]]
        names = {name for one in asked for name in re.findall(r"jitsu_\w+", one)}
        self.assertGreater(len(names), 10)
        self.assertEqual(set(), names - there)
        for panel in grafana["panels"]:
            self.assertLessEqual(panel["gridPos"]["x"] + panel["gridPos"]["w"], 24)
