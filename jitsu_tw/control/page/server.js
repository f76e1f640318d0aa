// What the control endpoint has told: asked for at the beginning, and then changed by its events. It is shown elsewhere.

import {heard, make, $} from "./view.js";

const POLL = 5000;       // ms between two looks at what no event tells of: counts, leases, the VMs that are shown
const ALL = 60000;       // ms between two looks at all VMs; each VM makes it 20 ms longer
const FEW = 100;         // as many VMs are all asked for at each look
const LONGEST = 8000;    // characters of a path, but for its last name; the endpoint reads 16384 octets of a line

export const vms = new Map();         // by name: what the endpoint says, and when it said so
export const activations = new Map(); // by id
export const refusals = new Map();    // by VM, network and reason
export const busy = new Set();        // VMs of which something is being done
export const other = {};              // about, problems, standins, nodes, hosts, templates
export const state = {live: false, loaded: false};
export const mayAct = () => state.live && !(other.about && other.about.shows_only);

let changed = () => {}, visible = () => [], readLast = -Infinity;

// Without the page's password, which `fetch` does not take in an address.
export async function ask(path, method = "GET") {
  const answer = await fetch(new URL(path, location.origin + location.pathname), {method});
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

export function say(error) {
  const line = make("p", "", error.message === "Failed to fetch" ? "Jitsu does not answer." : error.message);
  $("said").append(line);
  setTimeout(() => line.remove(), 8000);
}

export function hear(vm) {
  vm.heard = performance.now();
  vms.set(vm.name, vm);
}

async function readVMs(names) {
  if (vms.size > FEW && performance.now() < readLast + ALL + 20 * vms.size) {
    for (let from = 0, to; from < names.length; from = to) {
      let path = "v1/vms?";
      for (to = from; to < names.length && path.length < LONGEST; to++) path += `name=${encodeURIComponent(names[to])}&`;
      const found = await ask(path);
      names.slice(from, to).forEach(name => vms.delete(name));
      found.forEach(hear);
    }
    return;
  }
  readLast = performance.now();
  const all = await ask("v1/vms");
  vms.clear();
  all.forEach(hear);
  state.loaded = true;
}

async function readOthers() {
  const [about, health, standins, nodes, hosts, templates] = await Promise.all(
    ["v1/about", "healthz", "v1/standins", "v1/nodes", "v1/hosts", "v1/templates"].map(path => ask(path)));
  Object.assign(other, {about, problems: health.problems, standins, nodes, hosts, templates});
}

async function readAll() {
  readLast = -Infinity;
  try {
    const [, , last, refused] = await Promise.all([
      readVMs([]), readOthers(), ask("v1/activations?last=30"), ask("v1/refusals")]);
    activations.clear();
    last.forEach(one => activations.set(one.id, one));
    refusals.clear();
    refused.reverse().forEach(hearRefusal);
    changed();
  } catch (error) { say(error); }
}

async function poll() {
  if (!document.hidden && state.live) {
    try {
      await Promise.all([readVMs(visible()), readOthers()]);
      changed();
    } catch { /* the stream of events says so, too */ }
  }
  setTimeout(poll, POLL);
}

function hearRefusal(one) {
  const key = JSON.stringify([one.vm, one.network, one.reason]);
  refusals.delete(key);
  refusals.set(key, one);
}

function live(is) {
  state.live = is;
  changed();
}

function listen() {
  const stream = new EventSource("v1/events");
  const on = (kind, act) => stream.addEventListener(kind, message => {
    const event = JSON.parse(message.data);
    if (event.machine) {  // it has just happened
      heard(event.at);
      hear(event.machine);
    }
    if (event.activation) activations.set(event.activation.id, event.activation);
    if (act) act(event);
    changed(event.vm);
  });
  ["state", "activation", "hold", "release", "made"].forEach(kind => on(kind));
  on("forgotten", event => vms.delete(event.vm));
  on("refused", hearRefusal);
  ["missed", "lost", "connected"].forEach(kind => on(kind, readAll));
  stream.onopen = () => { live(true); readAll(); };
  stream.onerror = () => {
    live(false);
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

export async function act(name, what) {
  busy.add(name);
  changed(name);
  try {
    const answer = await ask(`v1/vms/${encodeURIComponent(name)}/${what}`, "POST");
    if (answer.forgotten) vms.delete(name);
    else hear(answer);
  } catch (error) { say(error); }
  busy.delete(name);
  changed(name);
}

// Begin. `onChange` is called with the VM that has changed, if one has; `shown` returns the names of the VMs on the page.
export function begin(onChange, shown) {
  changed = onChange;
  visible = shown;
  listen();
  poll();
}
