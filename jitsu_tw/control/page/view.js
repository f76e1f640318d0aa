// What all parts of the page use: elements, times in words, and the kinds of states.

export const $ = id => document.getElementById(id);

export function make(tag, classes, text) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function button(label, act, title) {
  const made = make("button", "", label);
  made.type = "button";
  if (title) made.title = title;
  made.addEventListener("click", act);
  return made;
}

// A row of a table, whose numbers have a label of their own where the table has no head (on a phone).
export function row(...cells) {
  const made = make("tr");
  for (const cell of cells) {
    const td = make("td");
    if (cell instanceof Node) td.append(cell);
    else if (Array.isArray(cell)) {
      td.className = "number";
      td.dataset.label = cell[0];
      td.textContent = cell[1];
    } else td.textContent = cell;
    made.append(td);
  }
  return made;
}

// Times. The clock of the server counts: `skew` is how many ms this browser's is ahead of it.

let skew = 0;

export const heard = at => { skew = Date.now() - at * 1000; };
export const now = () => Date.now() - skew;

export function duration(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const ago = seconds => `${duration(now() / 1000 - seconds)} ago`;
export const ms = value => value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
export const gib = octets => `${(octets / 2 ** 30).toLocaleString("en", {maximumFractionDigits: 2})} GiB`;
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

export function date(seconds) {
  return new Date(seconds * 1000).toLocaleDateString("en-GB", {day: "numeric", month: "short", year: "numeric"});
}

// An element with a time: in words, or by the clock; where the pointer rests, with the date and the time zone.
export function time(seconds, words) {
  const moment = new Date(seconds * 1000), made = make("time");
  made.dateTime = moment.toISOString();
  made.title = moment.toLocaleString("en-GB", {dateStyle: "full", timeStyle: "long"});
  const today = moment.toDateString() === new Date(now()).toDateString();
  const day = today ? {} : {day: "numeric", month: "short"};
  const at = {...day, hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false};
  made.textContent = words || moment.toLocaleString("en-GB", at);
  return made;
}

// The first of `texts`, and how many more there are: a VM may have hundreds of names.
export function few(texts, most) {
  return texts.length <= most + 1 ? texts : [...texts.slice(0, most), `${texts.length - most} more`];
}

// States, by kind. A kind has a colour and a sign; the word is always there, too.

const KINDS = {up: "up", queued: "moving", starting: "moving", cancelling: "moving", waiting: "moving",
               preparing: "moving", stopping: "moving", failed: "failed", unknown: "failed", prepared: "prepared",
               paused: "asleep", saved: "asleep"};
export const LABELS = {all: "All", failed: "Failed", up: "Up", moving: "On the way", prepared: "Prepared",
                       asleep: "Asleep", off: "Off"};
const WORDS = {queued: "waits for its turn, or for a VM that it needs", starting: "the hypervisor starts it",
               waiting: "its guest boots", preparing: "boots for nobody yet", cancelling: "will be stopped"};

export const kindOf = vm => KINDS[vm.state] || "off";

export function why(vm) {
  const reason = WORDS[vm.state] || (vm.state === "up" || vm.reason === "found so" ? "" : vm.reason);
  return [reason, ...vm.problems].filter(Boolean).join("; ");
}

// The strip of a VM's last 24 hours: a column for each half hour (see `day` in v1/openapi.json).

const SVG = "http://www.w3.org/2000/svg";
const HEIGHTS = {z: 3, p: 6, f: 18, "-": 1};
const CLASSES = {z: "asleep", p: "prepared", f: "failed", "-": "unknown"};

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  return made;
}

export function strip(day) {
  const made = shape("svg", {viewBox: "0 0 192 18", class: "strip", role: "img", preserveAspectRatio: "none"});
  const text = day.padStart(48, " ");
  for (let from = 0, to; from < 48; from = to) {
    for (to = from + 1; to < 48 && text[to] === text[from] && text[from] !== "f"; to++);
    const sign = text[from];
    if (sign === "." || sign === " ") continue;
    const height = HEIGHTS[sign] || 2 * sign, x = 4 * from, width = 4 * (to - from);
    made.append(shape("rect", {x, y: 18 - height, width, height, class: CLASSES[sign] || "up"}));
    if (sign === "f") made.append(shape("path", {d: `M${x} 5l4 8m0-8l-4 8`, class: "cross"}));
  }
  const words = inWords(day);
  made.setAttribute("aria-label", words);
  const title = shape("title", {});
  title.textContent = words;
  made.append(title);
  return made;
}

function inWords(day) {
  let up = 0;
  const counts = {};
  for (const sign of day) {
    if (sign >= "1" && sign <= "9") up += sign / 18;
    else counts[sign] = (counts[sign] || 0) + .5;
  }
  const hours = value => value < 1 ? `${Math.round(60 * value)} min` : `${value.toFixed(1)} h`;
  const parts = [up && `up for about ${hours(up)}`, counts.z && `asleep for ${hours(counts.z)}`,
                 counts.p && `prepared for ${hours(counts.p)}`, counts.f && `failed in ${2 * counts.f} half hours`,
                 counts["-"] && `not known for ${hours(counts["-"])}`].filter(Boolean);
  return `Last 24 hours: ${parts.join(", ") || "nothing has happened"}`;
}
