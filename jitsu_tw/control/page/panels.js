// All of the page but the VMs: what they saved, the starts of each day, the last activations, refusals, and the rest.

import {$, ago, date, duration, kindOf, make, ms, now, row, set, time, zone} from "./view.js";
import {activations, other, refusals, state, vms} from "./server.js";
import {go} from "./place.js";

const MOST = 30;        // activations, and refusals
const MOST_ROWS = 200;  // stand-ins
const DAYS = 14;        // days with a column
const PARTS = [["turn", "query", "start"], ["hypervisor", "start", "started"], ["guest", "started", "ready"]];

export function render() {
  set($("live"), state.live ? "live" : "connection lost, trying again");
  $("live").className = state.live ? "live" : "";
  document.body.classList.toggle("stale", !state.live);
  renderActivations();
  renderRefusals();
  if (!other.about) return;
  $("shows-only").hidden = !other.about.shows_only;
  renderSummary(other.about);
  renderAbout(other.about);
  renderProblems(other.problems);
  renderStandins(other.standins);
  renderMembers(other.nodes, other.hosts);
}

// What they saved.

const many = value => value.toLocaleString("en", {maximumFractionDigits: value < 10 ? 1 : 0});

function renderSummary(about) {
  $("summary").hidden = !vms.size;
  const counts = {};
  for (const vm of vms.values()) counts[kindOf(vm)] = (counts[kindOf(vm)] || 0) + 1;
  set($("running"), `${counts.up || 0} of ${vms.size} VMs`);
  const rest = ["failed", "moving", "prepared", "asleep"].filter(kind => counts[kind]);
  const words = {failed: "failed", moving: "on the way", prepared: "prepared", asleep: "asleep"};
  set($("running-rest"), rest.map(kind => `${counts[kind]} ${words[kind]}`).join(", "));
  const saved = about.saved, hours = saved.byte_seconds / 2 ** 30 / 3600;
  set($("saved"), saved.seconds < 7200 ? duration(saved.seconds) : `${many(saved.seconds / 3600)} hours`);
  set($("saved-rest"), `${saved.measured ? `${many(hours)} GiB-hours, ` : ""}since ${date(saved.since)}`);
  const today = new Date(now()).toISOString().slice(0, 10);
  const last = about.days.find(day => day.date === today) || {starts: 0, failed: 0, median_ms: null};
  set($("starts"), `${last.starts} start${last.starts === 1 ? "" : "s"} today`);
  const median = last.median_ms === null ? "" : `half within ${ms(last.median_ms)}`;
  set($("starts-rest"), [median, last.failed && `${last.failed} failed`].filter(Boolean).join(", "));
  renderDays(about.days, today);
}

function renderDays(days, today) {
  const known = new Map(days.map(day => [day.date, day]));
  const columns = [];
  for (let ago = DAYS - 1; ago >= 0; ago--) {
    const day = new Date(Date.parse(today) - ago * 86400000).toISOString().slice(0, 10);
    columns.push(known.get(day) || {date: day, starts: 0, failed: 0, median_ms: null});
  }
  const said = JSON.stringify(columns);
  if ($("days").dataset.said === said) return;
  $("days").dataset.said = said;
  const most = Math.max(1, ...columns.map(day => day.starts + day.failed));
  $("days").replaceChildren(...columns.map(day => {
    const column = make("li"), words = [`${day.starts} starts`];
    if (day.median_ms !== null) words.push(`half within ${ms(day.median_ms)}`);
    if (day.failed) words.push(`${day.failed} failed`);
    column.title = `${day.date} (UTC): ${words.join(", ")}`;
    for (const [kind, count] of [["failed", day.failed], ["up", day.starts]]) {
      const part = make("div", kind);
      part.style.height = `${100 * count / most}%`;
      if (count) column.append(part);
    }
    column.append(make("span", "hidden", column.title));
    return column;
  }));
}

// The last activations. All bars have one scale, so that they can be compared; a bar that is much longer is cut.

function renderActivations() {
  const last = [...activations.values()].sort((a, b) => b.id - a.id).slice(0, MOST);
  for (const id of activations.keys()) if (last.length && id < last[last.length - 1].id) activations.delete(id);
  $("no-activations").hidden = last.length > 0;
  $("scale").hidden = $("activations-legend").hidden = !last.length;
  const totals = last.map(total), scale = scaleOf(totals);
  set($("scale"), `The whole width is ${ms(scale)}.${totals.some(one => one > scale) ? " What is longer ends with »." : ""}`);
  const list = $("activations"), old = new Map([...list.children].map(item => [item.dataset.id, item]));
  last.forEach((one, number) => {
    const before = old.get(String(one.id)), said = JSON.stringify([one, scale]);
    old.delete(String(one.id));
    let item = before;
    if (!before || one.outcome === "running" || before.dataset.said !== said) {
      item = timeline(one, scale);
      item.dataset.id = one.id;
      item.dataset.said = said;
      if (before) before.replaceWith(item);
    }
    if (list.children[number] !== item) list.insertBefore(item, list.children[number] || null);
    set(item.querySelector("time"), ago(one.began));
  });
  for (const item of old.values()) item.remove();
}

function total(one) {
  const ends = ["query", "start", "started", "ready", "answered"].map(step => one.steps[step] || 0);
  return Math.max(...ends, one.outcome === "running" ? now() - one.began * 1000 : one.took);
}

// The longest of them, unless it is ten times as long as most; two digits of it, so that the scale seldom changes.
function scaleOf(totals) {
  if (!totals.length) return 1;
  const ordered = [...totals].sort((a, b) => a - b);
  const longest = ordered[ordered.length - 1], median = ordered[Math.floor(ordered.length / 2)];
  const wanted = Math.max(10, longest > 10 * median ? 4 * median : longest);
  const unit = 10 ** Math.floor(Math.log10(wanted) - 1);
  return Math.ceil(wanted / unit) * unit;
}

function timeline(one, scale) {
  const item = make("li"), head = make("div", "head"), bar = make("div", "timeline"), steps = one.steps;
  const running = one.outcome === "running", whole = total(one), told = [];
  const bad = ["failed", "lost", "stopped"].includes(one.outcome);
  for (const [part, begin, end] of PARTS) {
    if (!(begin in steps)) continue;
    const open = !(end in steps);
    if (open && part === "turn" && !running && !bad) continue;
    const length = (open ? whole : steps[end]) - steps[begin];
    const piece = make("div", !open || (bad && part === "turn") ? part : running ? "now" : "broken");
    piece.style.width = `${100 * length / scale}%`;
    if (length > scale * .12 && length >= .5 && !open) set(piece, ms(length));
    piece.title = `${part}: ${ms(length)}`;
    told.push(piece.title);
    bar.append(piece);
    if (open) break;
  }
  if ("answered" in steps && one.clients) {
    const marker = make("div", "marker");
    marker.style.left = `${Math.min(100, 100 * steps.answered / scale)}%`;
    marker.title = `answered: ${ms(steps.answered)}`;
    told.push(marker.title);
    bar.append(marker);
  }
  if (whole > scale) bar.append(make("div", "cut", "»"));
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", told.join(", ") || "nothing yet");
  const result = make("span", bad ? "state failed" : running ? "state moving" : "", running ? "booting" :
    bad ? one.outcome : one.how);
  const who = make("span", "who quiet", `for ${one.asker}, `);
  who.append(time(one.began, ago(one.began)));
  const name = make("a", "name", one.vm);
  name.href = `#vm=${encodeURIComponent(one.vm)}`;
  name.addEventListener("click", event => { event.preventDefault(); go({vm: one.vm}); });
  head.append(name, result, who, make("span", "total", ms(whole)));
  item.append(head, bar);
  const clients = one.clients > 1 ? `${one.clients} clients answered` : "";
  const early = one.clients && "answered" in steps && "ready" in steps && steps.answered < steps.ready
    ? `answered ${ms(steps.ready - steps.answered)} before it was ready` : "";
  const words = [(bad || one.outcome === "up") && one.reason !== one.how ? one.reason : "", clients, early].filter(Boolean);
  if (words.length) item.append(make("span", "under", words.join("; ")));
  return item;
}

// The rest.

function renderRefusals() {
  const last = [...refusals.values()].reverse().slice(0, MOST);
  $("no-refusals").hidden = last.length > 0;
  $("refusals").hidden = !last.length;
  $("refusals").tBodies[0].replaceChildren(...last.map(one => {
    const made = row(one.vm, one.reason, one.network, ["times", String(one.times)], ["last", ""]);
    made.lastElementChild.append(time(one.last, ago(one.last)));
    made.title = `the last was ${one.asker}`;
    return made;
  }));
}

function renderProblems(problems) {
  const said = JSON.stringify(problems);
  if ($("problems").dataset.said === said) return;
  $("problems").dataset.said = said;
  $("problems").replaceChildren(...problems.map(text => make("p", "problem", text)));
}

function renderStandins(said) {
  $("standins-section").hidden = !said.configured;
  if (!said.configured) return;
  const held = said.standins.reduce((sum, one) => sum + one.held, 0);
  set($("standins-title"), `Synjitsu stands in for ${said.standins.length} address${said.standins.length === 1 ? "" : "es"}`);
  set($("standins-note"), said.error || `It holds ${held} packet${held === 1 ? "" : "s"} now.`);
  $("standins").hidden = !said.standins.length;
  $("standins").tBodies[0].replaceChildren(...said.standins.slice(0, MOST_ROWS).map(one =>
    row(one.ip, one.state, one.handover, ["held", String(one.held)])));
  const counters = Object.entries(said.counters).filter(([, count]) => count);
  $("counters").hidden = !counters.length;
  $("counters").querySelector("tbody").replaceChildren(...counters.map(([name, count]) =>
    row(name.replaceAll("_", " "), ["", count.toLocaleString("en")])));
}

function renderMembers(nodes, hosts) {
  $("members-section").hidden = nodes.length < 2 && !hosts.length;
  const all = [...hosts.map(one => ["host", one]), ...(nodes.length > 1 ? nodes.map(one => ["node", one]) : [])];
  $("members").tBodies[0].replaceChildren(...all.map(([what, one]) => {
    const how = make("span", `state ${one.problem ? "failed" : one.drained ? "moving" : "up"}`,
                     one.problem || (one.drained ? "drained" : "well"));
    return row(one.name + (one.here ? " (here)" : ""), what, how, ["VMs", String(one.vms)]);
  }));
}

function renderAbout(about) {
  set($("version"), `Jitsu ${about.version}`);
  const began = new Date(about.began * 1000).toLocaleString("en-GB", {dateStyle: "medium", timeStyle: "short"});
  set($("uptime"), `${duration(now() / 1000 - about.began)}, since ${began}`);
  const zones = about.zones || [], more = (about.zone_count || 0) - zones.length;
  set($("zones"), zones.join(", ") + (more > 0 ? ` and ${more} more` : ""));
  set($("addresses"), (about.addresses || []).join(", "));
  set($("timezone"), zone);
}

// Time goes on.
export function tick() {
  renderActivations();
}
