"""What operators of DNS have: counters, query log, identity, webhooks and traces; a whole Jitsu, dig, a receiver."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import urlopen

import dns.message
import dns.query

from test.programs.test_tap import HOST, PATIENCE, TOKEN, VMS, ProcessTestCase


class Receiver(ThreadingHTTPServer):
    """
    A server for webhooks and traces, on a port of its own.

    Attributes:
        posts: path, headers and octets of each POST, in their order.
        failures: how many are answered with status 503 before one is taken.
    """

    def __init__(self) -> None:
        """Listen, in a thread."""
        super().__init__((HOST, 0), Handler)
        self.posts: list[tuple[str, Any, bytes]] = []
        self.failures = 1
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers a POST."""

    def do_POST(self) -> None:
        """Take a document, and answer with a body that is long."""
        server = self.server
        assert isinstance(server, Receiver)
        octets = self.rfile.read(int(self.headers["content-length"]))
        server.posts.append((self.path, self.headers, octets))
        status = 503 if server.failures else 200
        server.failures -= bool(server.failures)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"x" * 100)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class OperatorTests(ProcessTestCase):
    """Everything together."""

    def dig(self, *arguments: str) -> str:
        """Run dig to its end, without a cookie: an answer with one is never warm. Return what it prints."""
        options = ("+nocookie", f"@{HOST}", "-p", str(self.port), "+tries=1", f"+time={PATIENCE:.0f}")
        return self.run_to_end("dig", *options, *arguments).stdout

    def metrics(self) -> dict[str, float]:
        """Return the samples of DNS, by their text."""
        with urlopen(f"http://{HOST}:{self.control}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        found = re.findall(r"^(jitsu_(?:dns|query)\S*) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def until(self, count: int, values: Any) -> Any:
        """Wait until *values* returns *count* values or more; return them."""
        end = time.monotonic() + PATIENCE
        while len(found := values()) < count:
            self.assertLess(time.monotonic(), end, (found, self.log()))
            time.sleep(0.05)
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the query log, but for those of the start."""
        path = self.folder / "queries"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [line for line in lines if line["name"] != "nobody.test"]

    def test_queries(self) -> None:
        """Counters and the query log have each query, warm and cold, by UDP and TCP; a renamed file is left alone."""
        self.serve("--zone", "jitsu.zone", configuration=f"query_log: queries\nlog_json: true\nidentity: ns1\n{VMS}")
        before = self.metrics()
        for arguments in (("www.jitsu.test",), ("www.jitsu.test",), ("WWW.jitsu.test",), ("+tcp", "www.jitsu.test"),
                          ("no.jitsu.test", "AAAA"), ("example.org", "MX")):  # fmt: skip
            self.dig(*arguments)
        self.assertEqual('"ns1"\n', self.dig("+short", "id.server", "TXT", "CH"))
        self.assertIn("status: REFUSED", self.dig("version.bind", "TXT", "CH"))
        lines = self.until(8, self.lines)
        self.assertEqual(["www", "www", "WWW", "www", "no", "example", "id", "version"],
                         [line["name"].partition(".")[0] for line in lines])  # fmt: skip
        whats = [line["what"] for line in lines]
        self.assertEqual(["summoned", "warm", "warm", "up", "answered", "refused", "answered", "refused"], whats)
        expected = Counter((line["protocol"], line["type"], line["rcode"]) for line in lines)
        after = self.metrics()
        gained = {key: value - before.get(key, 0) for key, value in after.items() if value > before.get(key, 0)}
        self.assertEqual(
            {f'jitsu_dns_responses_total{{protocol="{one[0]}",rcode="{one[2]}",type="{one[1]}"}}': float(times)
             for one, times in expected.items()},
            {key: value for key, value in gained.items() if key.startswith("jitsu_dns_responses")},
        )  # fmt: skip
        self.assertEqual(4, gained['jitsu_dns_zone_responses_total{rcode="NOERROR",zone="jitsu.test"}'])
        self.assertGreaterEqual(gained['jitsu_query_log_lines_total{outcome="written"}'], 8)
        (self.folder / "queries").rename(self.folder / "queries.1")
        self.dig("www.jitsu.test")
        self.assertEqual(1, len(self.until(1, self.lines)))

    def test_bad_disk(self) -> None:
        """Where the query log cannot be written, all is answered, and the lines are counted."""
        self.serve("--zone", "jitsu.zone", configuration=f"query_log: /dev/full\n{VMS}")
        for _ in range(2):
            self.assertIn("10.0.0.1", self.dig("www.jitsu.test"))
        self.until_logged("query_log: lines are dropped")
        dropped = 'jitsu_query_log_lines_total{outcome="dropped"}'
        self.until(1, lambda: [1] * (self.metrics()[dropped] >= 2))

    def test_stdout_at_the_end(self) -> None:
        """Lines for standard output are there, the last ones too, when the process has ended."""
        process = self.serve("--zone", "jitsu.zone", configuration=f"query_log: '-'\n{VMS}")
        self.dig("www.jitsu.test")
        process.terminate()
        process.wait(PATIENCE)
        self.assertRegex(self.log(), r"(?m)^\S+ [0-9.]+ms 127\.0\.0\.1 udp www\.jitsu\.test A NOERROR summoned www$")

    def test_webhooks(self) -> None:
        """A start is told, signed, to a server that took it the second time; a trace is sent; DNS does not wait."""
        receiver = Receiver()
        self.addCleanup(receiver.close)
        url, path = f"http://{HOST}:{receiver.server_address[1]}", self.write_token()
        self.serve("--zone", "jitsu.zone", configuration=(
            f"webhooks: ['{url}/hook?x=1', 'http://{HOST}:1/']\nwebhook_secret: {path}\notlp: {url}/v1/traces\n"
            f"webhook_events: [started]\n{VMS}"
        ))  # fmt: skip
        answer = dns.query.udp(dns.message.make_query("www.jitsu.test", "A"), HOST, port=self.port, timeout=PATIENCE)
        self.assertEqual("10.0.0.1", answer.answer[0][0].to_text())
        self.until(3, lambda: receiver.posts)
        hooks = [one for one in receiver.posts if one[0] == "/hook?x=1"]
        (trace, *_) = [json.loads(octets) for where, _, octets in receiver.posts if where == "/v1/traces"]
        _, headers, octets = hooks[-1]
        self.assertEqual("sha256=" + hmac.new(TOKEN.encode(), octets, hashlib.sha256).hexdigest(),
                         headers["Jitsu-Signature"])  # fmt: skip
        event = json.loads(octets)
        self.assertEqual(("started", "www", "up"), (event["event"], event["vm"], event["activation"]["outcome"]))
        self.assertEqual("start www", trace["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"])
        self.until_logged(f"http://{HOST}:1 does not take what it is sent")

    def test_refused(self) -> None:
        """What is no URL, event or sample is refused, with its place."""
        for line, words in (
            ("webhooks: [ftp://a.test/]", "is no URL of a web server"),
            ("webhooks: ['http://u:p@a.test/']", "has a password in it"),
            ("webhooks: ['http://a.test/ x']", "is no URL of a web server"),
            ("webhook_events: [boots]", "webhook_events"), ("query_log_sample: 0", "query_log_sample"),
            ("webhook_secret: missing", "webhook_secret"), (f"version: {'x' * 256}", "is longer than 255 octets"),
        ):  # fmt: skip
            (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\nbackend: memory\n{line}\n")
            run = self.twistd("--config", "jitsu.yaml")
            self.assertEqual(1, run.returncode)
            self.assertIn("jitsu.yaml:3", run.stderr)
            self.assertIn(words, run.stderr)
