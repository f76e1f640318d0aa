// The table of VMs: which of them, in which order, on which page. All of that is in the address of the page. The VMs of
// a template are below a row of the template, which opens and closes.

import {$, LABELS, ago, button, duration, few, kindOf, make, set, strip, why} from "./view.js";
import {actions} from "./actions.js";
import {other, state, vms} from "./server.js";
import {go, place} from "./place.js";
import * as groups from "./groups.js";

const PAGE = 25;  // rows of a page

const RANKS = {failed: 0, moving: 1, up: 2, prepared: 3, asleep: 4, off: 5};
const TEXT = new Intl.Collator("en", {numeric: true}).compare;
const NUMBER = (a, b) => a - b;

// By the column's key: its words, what it is sorted by, and how; a number is sorted with the largest first.
const COLUMNS = {
  name: ["VM", vm => vm.name, TEXT],
  state: ["State", vm => RANKS[kindOf(vm)], NUMBER],
  lease: ["Lease", vm => vm.lease_left === null ? -1 : leaseLeft(vm), NUMBER, true],
  day: ["Last 24 hours", vm => [...vm.day].reduce((sum, sign) => sum + (Number(sign) || 0), 0), NUMBER, true],
  starts: ["Starts", vm => vm.total_starts, NUMBER, true],
  requests: ["Questions", vm => vm.total_requests, NUMBER, true],
  asked: ["Last asked", vm => vm.last_request_ts || 0, NUMBER, true],
};

const rows = new Map();  // by the VM's name, or the key of a template: the row that shows it
let heads = {}, length = 0;

const leaseLeft = vm => Math.max(0, vm.lease_left - (performance.now() - vm.heard) / 1000);
export const shown = () => [...rows.keys()].filter(key => !groups.isKey(key));

export function begin() {
  for (const kind in LABELS) {
    const made = button(LABELS[kind], () => go({filter: kind === "all" ? "" : kind, page: ""}));
    made.dataset.kind = kind;
    $("filters").append(made);
  }
  $("sort").append(new Option("Failed first", ""));
  const head = $("vms").tHead.rows[0];
  for (const key in COLUMNS) {
    const [label, , , largest] = COLUMNS[key], cell = make("th", largest && key !== "lease" && key !== "day" ? "number" : "");
    cell.scope = "col";
    cell.append(button(label, () => go({sort: next(key), page: ""}), `Sort by: ${label}`));
    heads[key] = cell;
    head.insertBefore(cell, head.lastElementChild);
    $("sort").append(new Option(label, largest ? `-${key}` : key));
  }
  $("sort").addEventListener("change", () => go({sort: $("sort").value, page: ""}));
  $("search").addEventListener("input", () => go({q: $("search").value, page: ""}, true));
  $("before").addEventListener("click", () => go({page: String(pageOf() - 1)}));
  $("after").addEventListener("click", () => go({page: String(pageOf() + 1)}));
  $("template").addEventListener("change", () => go({template: $("template").value, page: ""}));
  $("show-all").addEventListener("click", () => go({filter: "", q: "", template: "", page: ""}));
}

// Pressed again and again, a head sorts by its column, then the other way round, then not at all.
function next(key) {
  const first = COLUMNS[key][3] ? `-${key}` : key, second = COLUMNS[key][3] ? key : `-${key}`;
  return place.sort === first ? second : place.sort === second ? "" : first;
}

const pageOf = () => Math.min(Math.max(1, parseInt(place.page, 10) || 1), Math.max(1, Math.ceil(length / PAGE)));

function order() {
  const key = place.sort.replace(/^-/, ""), column = COLUMNS[key];
  if (!column) return vm => kindOf(vm) === "failed" || vm.problems.length ? 0 : 1;
  return column[1];
}

function sorted(some) {
  const key = order(), column = COLUMNS[place.sort.replace(/^-/, "")];
  const compare = column ? column[2] : NUMBER, sign = place.sort.startsWith("-") ? -1 : 1;
  const keyed = some.map((vm, number) => [key(vm), number, vm]);
  keyed.sort((a, b) => sign * compare(a[0], b[0]) || a[1] - b[1]);
  return keyed.map(one => one[2]);
}

export function render() {
  const words = place.q.trim().toLowerCase(), counts = {all: vms.size}, matching = [];
  for (const vm of vms.values()) {
    const kind = kindOf(vm);
    counts[kind] = (counts[kind] || 0) + 1;
    if (place.filter && kind !== place.filter) continue;
    if (place.template && !groups.isIn(vm, place.template)) continue;
    if (words && ![vm.name, ...vm.names, ...vm.addresses].some(text => text.toLowerCase().includes(words))) continue;
    matching.push(vm);
  }
  const entries = groups.entries(matching, sorted, Boolean(words || place.filter));
  length = entries.length;
  showTools(counts);
  const from = (pageOf() - 1) * PAGE, wanted = groups.page(entries, from, from + PAGE);
  const body = $("vms").tBodies[0], columns = $("vms").tHead.rows[0].cells.length, keep = new Set(wanted.map(one => one.key));
  const focused = document.activeElement;
  for (const [key, parts] of rows) if (!keep.has(key)) { parts.row.remove(); rows.delete(key); }
  wanted.forEach((one, number) => {
    let parts = rows.get(one.key);
    if (!parts) rows.set(one.key, parts = one.vm ? makeRow(one.key) : groups.makeRow(one.template, columns));
    if (body.rows[number] !== parts.row) body.insertBefore(parts.row, body.rows[number] || null);
    if (one.vm) fillRow(parts, one.vm);
    else groups.fillRow(parts, one);
  });
  if (body.contains(focused) && focused !== document.activeElement) focused.focus({preventScroll: true});  // its row moved
  const empty = state.loaded && !vms.size && !(other.templates || []).length;
  $("empty").hidden = !empty;
  $("vms").hidden = $("tools").hidden = $("legend").hidden = empty;
  $("nothing").hidden = empty || !state.loaded || length > 0;
  $("pages").hidden = length <= PAGE;
  $("before").disabled = from === 0;
  $("after").disabled = from + PAGE >= length;
  set($("range"), `${from + 1} to ${Math.min(from + PAGE, length)} of ${length}`);
}

function showTools(counts) {
  for (const made of $("filters").children) {
    const kind = made.dataset.kind;
    set(made, `${LABELS[kind]} ${counts[kind] || 0}`);
    made.setAttribute("aria-pressed", String((place.filter || "all") === kind));
  }
  if ($("search").value !== place.q) $("search").value = place.q;
  $("sort").value = place.sort;
  groups.showChoice();
  for (const key in heads) {
    const way = place.sort === key ? "ascending" : place.sort === `-${key}` ? "descending" : null;
    if (way) heads[key].setAttribute("aria-sort", way);
    else heads[key].removeAttribute("aria-sort");
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
  parts.name = button(name, () => go({vm: name}), "Why is it up, or down?");
  parts.name.classList.add("name");
  parts.names = make("span", "under");
  cell("who").append(parts.name, parts.names);
  parts.state = make("span");
  parts.reason = make("span", "under");
  cell("state-cell").append(parts.state, parts.reason);
  parts.left = make("span");
  parts.bar = make("div", "bar");
  parts.fill = make("div");
  parts.bar.append(parts.fill);
  cell("lease").append(parts.left, parts.bar);
  parts.day = cell("day");
  parts.starts = cell("number", "starts");
  parts.requests = cell("number", "questions");
  parts.last = cell("number", "asked");
  parts.actions = actions(() => name);
  cell("actions").append(...parts.actions.buttons);
  return parts;
}

function fillRow(parts, vm) {
  const where = [vm.host && `on ${vm.host}`, vm.node && `kept by ${vm.node}`].filter(Boolean);
  set(parts.names, [...few(vm.names, 3), ...few(vm.addresses, 3), ...where].join(", "));
  parts.state.className = `state ${kindOf(vm)}`;
  set(parts.state, vm.state);
  set(parts.reason, why(vm));
  if (parts.day.dataset.day !== vm.day) {
    parts.day.dataset.day = vm.day;
    parts.day.replaceChildren(strip(vm.day));
  }
  set(parts.starts, String(vm.total_starts));
  set(parts.requests, String(vm.total_requests));
  parts.row.classList.toggle("member", vm.template !== null);
  parts.actions.update(vm);
  fillTimes(parts, vm);
}

function fillTimes(parts, vm) {
  const left = vm.lease_left === null ? null : leaseLeft(vm);
  set(parts.left, vm.held ? "held" : vm.needed ? "needed" : left === null ? "–" : `${duration(left)} left`);
  parts.bar.hidden = left === null || vm.needed;
  parts.bar.parentElement.classList.toggle("none", left === null && !vm.held);
  parts.fill.style.width = left === null ? "0" : `${Math.min(100, 100 * left / (vm.idle || 1))}%`;
  set(parts.last, vm.last_request_ts === null ? "never" : ago(vm.last_request_ts));
}

// Time goes on.
export function tick() {
  for (const [name, parts] of rows) if (vms.has(name)) fillTimes(parts, vms.get(name));
}
