// The dashboard: reads the control endpoint, listens to its events, and shows both. It has no state of its own.
"use strict";

const MOST_ROWS = 200;         // VMs that are shown at once; the others are found by the search
const MOST_ACTIVATIONS = 30;
const MOST_REFUSALS = 30;
const POLL = 5000;             // ms between two looks at the counts of 500 VMs; more take longer
const SURE = 4000;             // ms in which a stop is to be confirmed

const UP = new Set(["up"]);
const MOVING = new Set(["queued", "starting", "cancelling", "waiting", "preparing", "stopping"]);
const FAILED = new Set(["failed", "unknown"]);
const FILTERS = {all: () => true, up: s => UP.has(s), moving: s => MOVING.has(s), failed: s => FAILED.has(s),
                 off: s => !UP.has(s) && !MOVING.has(s) && !FAILED.has(s)};
const LABELS = {all: "All", up: "Up", moving: "On the way", failed: "Failed", off: "Off"};
const WORDS = {queued: "waits for its turn", starting: "the hypervisor starts it", waiting: "its guest boots",
               preparing: "boots for nobody yet", cancelling: "will be stopped"};
const PARTS = [["turn", "query", "start"], ["hypervisor", "start", "started"], ["guest", "started", "ready"]];

const vms = new Map();         // by name: what the endpoint says, and when it said so
const rows = new Map();        // by name: the row that shows it
const activations = new Map(); // by id
const refusals = new Map();    // by VM, network and reason
let filter = "all", skew = 0, due = false, busy = new Set(), shown = null;

const $ = id => document.getElementById(id);

function make(tag, classes, text) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  if (text !== undefined) element.textContent = text;
  return element;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Times.

const now = () => Date.now() - skew;

function duration(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const ago = seconds => `${duration(now() / 1000 - seconds)} ago`;
const ms = value => value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
const clock = seconds => new Date(seconds * 1000).toLocaleTimeString([], {hour12: false});

// The endpoint.

async function ask(path, method = "GET") {
  const answer = await fetch(new URL(path, location.origin + location.pathname), {method});  // without the page's password
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function say(error) {
  const line = make("p", "", error.message === "Failed to fetch" ? "Jitsu does not answer." : error.message);
  $("said").append(line);
  setTimeout(() => line.remove(), 8000);
}

function hear(vm) {
  vm.heard = performance.now();
  vms.set(vm.name, vm);
  render();
}

async function readVMs() {
  const all = await ask("v1/vms");
  vms.clear();
  all.forEach(hear);
  render();
}

async function readAll() {
  try {
    const [, last, refused, health, standins, nodes, hosts] = await Promise.all([
      readVMs(), ask(`v1/activations?last=${MOST_ACTIVATIONS}`), ask("v1/refusals"), ask("healthz"), ask("v1/standins"),
      ask("v1/nodes"), ask("v1/hosts")]);
    activations.clear();
    last.forEach(one => activations.set(one.id, one));
    refusals.clear();
    refused.reverse().forEach(hearRefusal);
    showProblems(health.problems);
    showStandins(standins);
    showMembers(nodes, hosts);
    render();
  } catch (error) { say(error); }
}

async function poll() {
  if (!document.hidden && $("live").classList.contains("live")) {
    try {
      await readVMs();
      showProblems((await ask("healthz")).problems);
      showStandins(await ask("v1/standins"));
      showMembers(await ask("v1/nodes"), await ask("v1/hosts"));
    } catch { /* the stream of events says so, too */ }
  }
  setTimeout(poll, POLL * Math.max(1, vms.size / 500));
}

function hearRefusal(one) {
  const key = JSON.stringify([one.vm, one.network, one.reason]);
  refusals.delete(key);
  refusals.set(key, one);
}

function listen() {
  const stream = new EventSource("v1/events");
  const on = (kind, act) => stream.addEventListener(kind, message => {
    const event = JSON.parse(message.data);
    if (event.machine) {  // it has just happened
      skew = Date.now() - event.at * 1000;
      hear(event.machine);
    }
    if (event.activation) activations.set(event.activation.id, event.activation);
    if (act) act(event);
    render();
    if (shown === event.vm && shown) showDetails(shown);
  });
  ["state", "activation", "hold", "release"].forEach(kind => on(kind));
  on("refused", hearRefusal);
  on("missed", readAll);
  on("lost", readAll);
  on("connected", readAll);
  const live = is => {
    $("live").className = is ? "live" : "";
    document.body.classList.toggle("stale", !is);
    set($("live"), is ? "live" : "connection lost, trying again");
  };
  stream.onopen = () => { live(true); readAll(); };
  stream.onerror = () => {
    live(false);
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

// What can be done.

async function act(name, what) {
  busy.add(name);
  render();
  try {
    hear(await ask(`v1/vms/${encodeURIComponent(name)}/${what}`, "POST"));
  } catch (error) { say(error); }
  busy.delete(name);
  render();
}

function actionButton(label, name, what, title) {
  const button = make("button", "", label);
  button.type = "button";
  button.title = title;
  button.addEventListener("click", () => {
    if (what === "stop" && !button.classList.contains("sure")) {
      button.classList.add("sure");
      set(button, "Sure?");
      setTimeout(() => { button.classList.remove("sure"); set(button, label); }, SURE);
    } else {
      act(name, typeof what === "function" ? what() : what);
    }
  });
  return button;
}

// Showing. Everything that changes asks for one rendering; rows are changed where they are, so that what is under the
// pointer stays there.

function render() {
  if (!due) {
    due = true;
    requestAnimationFrame(() => { due = false; renderVMs(); renderActivations(); renderRefusals(); });
  }
}

function makeRow(name) {
  const row = make("tr"), parts = {row};
  const cell = (classes, label) => {
    const td = make("td", classes);
    if (label) td.dataset.label = label;
    row.append(td);
    return td;
  };
  const who = cell("");
  parts.name = make("button", "name", name);
  parts.name.type = "button";
  parts.name.title = "Why is it up, or down?";
  parts.name.addEventListener("click", () => showDetails(name));
  parts.names = make("span", "under");
  who.append(parts.name, parts.names);
  const how = cell("state-cell");
  parts.state = make("span", "state");
  parts.reason = make("span", "under");
  how.append(parts.state, parts.reason);
  const lease = cell("lease");
  parts.left = make("span");
  parts.bar = make("div", "bar");
  parts.fill = make("div");
  parts.bar.append(parts.fill);
  lease.append(parts.left, parts.bar);
  parts.starts = cell("number", "starts");
  parts.requests = cell("number", "questions");
  parts.last = cell("number", "asked");
  parts.start = actionButton("Start", name, "start", "Start it now");
  parts.stop = actionButton("Stop", name, "stop", "Stop it; the next question starts it again");
  parts.hold = actionButton("Hold", name, () => vms.get(name).held ? "release" : "hold", "");
  cell("").append(parts.start, parts.stop, parts.hold);
  return parts;
}

function fillRow(parts, vm) {
  const where = [vm.host && `on ${vm.host}`, vm.node && `kept by ${vm.node}`].filter(Boolean);
  set(parts.names, [...vm.names, ...vm.addresses, ...where].join(", "));
  const kind = UP.has(vm.state) ? "up" : MOVING.has(vm.state) ? "moving" : FAILED.has(vm.state) ? "failed" : "off";
  parts.state.className = `state ${kind}`;
  set(parts.state, vm.state);
  const reason = WORDS[vm.state] || (vm.state === "up" || vm.reason === "found so" ? "" : vm.reason);
  set(parts.reason, [reason, ...vm.problems].filter(Boolean).join("; "));
  fillLease(parts, vm);
  set(parts.starts, String(vm.total_starts));
  set(parts.requests, String(vm.total_requests));
  const isUp = vm.state === "up";
  parts.start.disabled = isUp || busy.has(vm.name) || MOVING.has(vm.state);
  parts.stop.disabled = !isUp && !MOVING.has(vm.state);
  parts.hold.disabled = !vm.held && busy.has(vm.name);
  set(parts.hold, vm.held ? "Release" : "Hold");
  parts.hold.title = vm.held ? "Let it be stopped when nobody uses it" : "Start it and keep it up until it is released";
  parts.hold.setAttribute("aria-pressed", String(vm.held));
}

function fillLease(parts, vm) {
  const left = vm.lease_left === null ? null : Math.max(0, vm.lease_left - (performance.now() - vm.heard) / 1000);
  set(parts.left, vm.held ? "held" : vm.needed ? "needed" : left === null ? "–" : `${duration(left)} left`);
  parts.bar.hidden = left === null || vm.needed;
  parts.bar.parentElement.classList.toggle("none", left === null && !vm.held);
  parts.fill.style.width = left === null ? "0" : `${Math.min(100, 100 * left / (vm.idle || 1))}%`;
  set(parts.last, vm.last_request_ts === null ? "never" : ago(vm.last_request_ts));
}

function renderVMs() {
  const words = $("search").value.trim().toLowerCase();
  const counts = {};
  for (const kind in FILTERS) counts[kind] = 0;
  const wanted = [];
  let matching = 0;
  for (const vm of vms.values()) {
    for (const kind in FILTERS) if (FILTERS[kind](vm.state)) counts[kind]++;
    if (!FILTERS[filter](vm.state)) continue;
    if (words && ![vm.name, ...vm.names, ...vm.addresses].some(text => text.toLowerCase().includes(words))) continue;
    if (matching++ < MOST_ROWS) wanted.push(vm);
  }
  for (const button of $("filters").children) {
    set(button, `${LABELS[button.dataset.kind]} ${counts[button.dataset.kind]}`);
    button.setAttribute("aria-pressed", String(filter === button.dataset.kind));
  }
  const body = $("vms").tBodies[0], keep = new Set(wanted.map(vm => vm.name));
  for (const [name, parts] of rows) if (!keep.has(name)) { parts.row.remove(); rows.delete(name); }
  wanted.forEach((vm, place) => {
    let parts = rows.get(vm.name);
    if (!parts) rows.set(vm.name, parts = makeRow(vm.name));
    if (body.rows[place] !== parts.row) body.insertBefore(parts.row, body.rows[place] || null);
    fillRow(parts, vm);
  });
  const hidden = matching - wanted.length;
  $("more").hidden = !hidden && matching > 0;
  set($("more"), hidden ? `${hidden} more; search for them.` : matching ? "" : vms.size ? "None like that." : "");
}

function renderActivations() {
  const last = [...activations.values()].sort((a, b) => b.id - a.id).slice(0, MOST_ACTIVATIONS);
  for (const id of activations.keys()) if (last.length && id < last[last.length - 1].id) activations.delete(id);
  $("no-activations").hidden = last.length > 0;
  const list = $("activations"), old = new Map([...list.children].map(item => [item.dataset.id, item]));
  last.forEach((one, place) => {
    const before = old.get(String(one.id)), text = JSON.stringify(one);
    old.delete(String(one.id));
    let item = before;
    if (!before || one.outcome === "running" || before.dataset.said !== text) {
      item = timeline(one);
      item.dataset.id = one.id;
      item.dataset.said = text;
      if (before) before.replaceWith(item);
    }
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
    set(item.querySelector("time"), ago(one.began));
  });
  for (const item of old.values()) item.remove();
}

function timeline(one) {
  const item = make("li"), head = make("div", "head"), bar = make("div", "timeline"), steps = one.steps;
  const running = one.outcome === "running", elapsed = now() - one.began * 1000;
  const ends = ["query", "start", "started", "ready", "answered"].map(step => steps[step] || 0);
  const total = Math.max(...ends, running ? elapsed : one.took);
  const told = [];
  for (const [part, begin, end] of PARTS) {
    if (!(begin in steps)) continue;
    const open = !(end in steps);
    if (open && part === "turn" && !running) continue;
    const length = (open ? total : steps[end]) - steps[begin];
    const piece = make("div", open ? (running ? "now" : "broken") : part);
    piece.style.width = `${100 * length / (total || 1)}%`;
    if (length > total * .12 && length >= .5 && !open) set(piece, ms(length));
    piece.title = `${part}: ${ms(length)}`;
    told.push(piece.title);
    bar.append(piece);
    if (open) break;
  }
  if ("answered" in steps) {
    const marker = make("div", "marker");
    marker.style.left = `${100 * steps.answered / (total || 1)}%`;
    marker.title = `answered: ${ms(steps.answered)}`;
    told.push(marker.title);
    bar.append(marker);
  }
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", told.join(", ") || "nothing yet");
  const name = make("strong", "", one.vm), when = make("time", "", ago(one.began));
  when.dateTime = new Date(one.began * 1000).toISOString();
  when.title = new Date(one.began * 1000).toLocaleString();
  const bad = ["failed", "lost", "stopped"].includes(one.outcome);
  const result = make("span", bad ? "state failed" : running ? "state moving" : "", running ? "booting" :
    bad ? one.outcome : one.how);
  const who = make("span", "who quiet", `for ${one.asker}, `);
  who.append(when);
  head.append(name, result, who, make("span", "total", ms(total)));
  item.append(head, bar);
  const clients = one.clients > 1 ? `${one.clients} clients answered` : "";
  const early = "answered" in steps && "ready" in steps && steps.answered < steps.ready
    ? `answered ${ms(steps.ready - steps.answered)} before it was ready` : "";
  const words = [bad || one.outcome === "up" ? one.reason !== one.how ? one.reason : "" : "", clients, early].filter(Boolean);
  if (words.length) item.append(make("span", "under", words.join("; ")));
  return item;
}

function renderRefusals() {
  const last = [...refusals.values()].reverse().slice(0, MOST_REFUSALS);
  $("no-refusals").hidden = last.length > 0;
  $("refusals").hidden = !last.length;
  $("refusals").tBodies[0].replaceChildren(...last.map(one => {
    const row = make("tr"), times = make("td", "number", String(one.times)), when = make("td", "number", ago(one.last));
    times.dataset.label = "times";
    when.dataset.label = "last";
    row.append(make("td", "", one.vm), make("td", "", one.reason), make("td", "", one.network), times, when);
    row.title = `the last was ${one.asker}`;
    return row;
  }));
}

function showProblems(problems) {
  const said = JSON.stringify(problems);
  if ($("problems").dataset.said === said) return;
  $("problems").dataset.said = said;
  $("problems").replaceChildren(...problems.map(text => make("p", "problem", text)));
}

function showStandins(said) {
  $("standins-section").hidden = !said.configured;
  set($("no-standins"), said.error || (said.standins.length ? "" : "Nobody now."));
  $("standins").tBodies[0].replaceChildren(...said.standins.slice(0, MOST_ROWS).map(one => {
    const row = make("tr"), held = make("td", "number", String(one.held));
    held.dataset.label = "held";
    row.append(make("td", "", one.ip), make("td", "", one.state), make("td", "", one.handover), held);
    return row;
  }));
}

function showMembers(nodes, hosts) {
  $("members-section").hidden = nodes.length < 2 && !hosts.length;
  const all = [...hosts.map(one => ["host", one]), ...(nodes.length > 1 ? nodes.map(one => ["node", one]) : [])];
  $("members").tBodies[0].replaceChildren(...all.map(([what, one]) => {
    const row = make("tr"), number = make("td", "number", String(one.vms)), how = make("td");
    number.dataset.label = "VMs";
    how.append(make("span", `state ${one.problem ? "failed" : one.drained ? "moving" : "up"}`,
                    one.problem || (one.drained ? "drained" : "well")));
    row.append(make("td", "", one.name + (one.here ? " (here)" : "")), make("td", "", what), how, number);
    return row;
  }));
}

async function showDetails(name) {
  shown = name;
  let vm;
  try { vm = await ask(`v1/vms/${encodeURIComponent(name)}`); } catch (error) { return say(error); }
  if (shown !== name) return;
  set($("details-title"), `${name} is ${vm.state}`);
  set($("details-facts"), [...vm.names, ...vm.addresses, `stopped by ${vm.mode}`, vm.uuid].filter(Boolean).join(" · "));
  $("details-why").replaceChildren(...vm.why.map(text => make("p", "", text)));
  $("details-decisions").replaceChildren(...vm.decisions.reverse().map(one => {
    const item = make("li"), when = make("time", "", clock(one.at));
    when.dateTime = new Date(one.at * 1000).toISOString();
    const what = one.kind === "state" ? one.state : one.kind === "hold" ? "held by hand" : "released by hand";
    const reason = one.reason === "asked for" ? "" : one.reason;
    item.append(when, make("span", "", [one.asker ? `${what} for ${one.asker}` : what, reason].filter(Boolean).join(": ")));
    return item;
  }));
  if (!vm.decisions.length) $("details-decisions").append(make("li", "quiet", "None since Jitsu began."));
  if (!$("details").open) $("details").showModal();
}

// Begin.

for (const kind in FILTERS) {
  const button = make("button", "", LABELS[kind]);
  button.type = "button";
  button.dataset.kind = kind;
  button.addEventListener("click", () => { filter = kind; render(); });
  $("filters").append(button);
}
$("search").addEventListener("input", render);
$("details").addEventListener("close", () => { shown = null; });
$("details").addEventListener("click", event => { if (event.target === $("details")) $("details").close(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) readAll(); });
setInterval(() => {
  for (const [name, parts] of rows) if (vms.has(name)) fillLease(parts, vms.get(name));
  if ([...activations.values()].some(one => one.outcome === "running") || activations.size) render();
}, 1000);
setInterval(() => { if ([...activations.values()].some(one => one.outcome === "running")) render(); }, 100);
listen();
poll();
