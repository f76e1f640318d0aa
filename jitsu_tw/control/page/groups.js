// The templates in the table of VMs: a row for each, with its VMs below it while it is open; and the choice of one.

import {$, LABELS, few, kindOf, make, set} from "./view.js";
import {other, vms} from "./server.js";
import {go, place} from "./place.js";

const NONE = ".";      // the choice of the VMs that no template has made; no template has a dot in its name
const PREFIX = "\0";   // what keys of templates' rows begin with: no VM is called so

export const isKey = key => key.startsWith(PREFIX);
export const isIn = (vm, choice) => (vm.template || NONE) === choice;
const count = (number, word, ending = "s") => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : ending}`;
const opened = () => new Set(place.open.split(",").filter(Boolean));

// The rows of `matching`, all pages of them: VMs of the configuration, then each template, and, if it is open, its VMs.
// While VMs are looked for (`narrowed`), all templates are open, and those without such VMs are left out.
export function entries(matching, sorted, narrowed) {
  const alone = [], byTemplate = new Map(), open = opened(), found = [];
  for (const one of narrowed ? [] : other.templates || []) {
    if (!place.template || place.template === one.name) byTemplate.set(one.name, []);
  }
  for (const vm of matching) {
    if (vm.template === null) alone.push(vm);
    else if (byTemplate.has(vm.template)) byTemplate.get(vm.template).push(vm);
    else byTemplate.set(vm.template, [vm]);
  }
  const kinds = new Map([...byTemplate.keys()].map(name => [name, {}]));
  for (const vm of vms.values()) {
    const mine = kinds.get(vm.template), kind = kindOf(vm);
    if (mine) mine[kind] = (mine[kind] || 0) + 1;
  }
  const add = vm => found.push({key: vm.name, vm});
  sorted(alone).forEach(add);
  for (const [template, some] of byTemplate) {
    const isFixed = narrowed || place.template === template, isOpen = isFixed || open.has(template);
    found.push({key: PREFIX + template, template, isOpen, isFixed, kinds: kinds.get(template)});
    if (isOpen) sorted(some).forEach(add);
  }
  return found;
}

// The rows of a page. Where it begins within a template, the template's row is there, too.
export function page(entries, from, to) {
  const first = entries[from], wanted = entries.slice(from, to);
  if (!first || !first.vm || first.vm.template === null) return wanted;
  return [entries.find(one => one.template === first.vm.template), ...wanted];
}

export function makeRow(template, columns) {
  const row = make("tr", "group"), cell = make("td"), parts = {row};
  cell.colSpan = columns;
  parts.toggle = make("button", "toggle", template);
  parts.toggle.type = "button";
  parts.toggle.addEventListener("click", () => {
    const open = opened();
    if (!open.delete(template)) open.add(template);
    go({open: [...open].join(","), page: ""}, true);
  });
  parts.counts = make("span", "counts");
  parts.limits = make("span", "under");
  parts.problems = make("span", "under failed");
  cell.append(parts.toggle, parts.counts, parts.limits, parts.problems);
  row.append(cell);
  return parts;
}

export function fillRow(parts, {template, isOpen, isFixed, kinds}) {
  const one = (other.templates || []).find(each => each.name === template);
  parts.toggle.setAttribute("aria-expanded", String(isOpen));
  parts.toggle.disabled = isFixed;
  const said = JSON.stringify(kinds);
  if (parts.counts.dataset.said !== said) {
    parts.counts.dataset.said = said;
    const all = Object.values(kinds).reduce((sum, number) => sum + number, 0);
    const some = Object.keys(LABELS).filter(kind => kinds[kind]).map(kind =>
      make("span", `state ${kind}`, `${kinds[kind].toLocaleString("en")} ${LABELS[kind].toLowerCase()}`));
    parts.counts.replaceChildren(make("span", "", count(all, "VM")), ...some);
  }
  set(parts.limits, one ? [...few(one.wildcards, 3), `at most ${count(one.max, "VM")}`,
                           count(one.pool.free, "free address", "es")].join(", ") : "");
  set(parts.problems, one ? one.problems.join("; ") : "");
}

// The choice of a template, or of none, where there are templates.
export function showChoice() {
  const names = (other.templates || []).map(one => one.name), choice = $("template");
  const said = JSON.stringify(names);
  if (choice.dataset.said !== said) {
    choice.dataset.said = said;
    const each = names.map(name => new Option(`Of ${name}`, name));
    choice.replaceChildren(new Option("All VMs", ""), new Option("Without a template", NONE), ...each);
  }
  choice.hidden = !names.length;
  choice.value = place.template;
}
