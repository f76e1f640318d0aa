// The dialogue with one VM: why it is up or down, what uses it, its configuration, and what was decided.

import {$, duration, few, gib, kindOf, make, ms, row, set, strip, time, zone} from "./view.js";
import {actions} from "./actions.js";
import {ask, say, state, vms} from "./server.js";
import {go, place} from "./place.js";

const USES = {query: "a question for its name", packets: "its guest had traffic", cpu: "CPU time of its guest",
              connection: "a connection was opened or closed", known: "seen in use, nobody knows how"};

const DECISIONS = {hold: "held by hand", release: "released by hand", made: "made", forgotten: "forgotten"};

let open = "", buttons = null;

export function begin() {
  buttons = actions(() => open, true);
  $("details-actions").append(...buttons.buttons);
  $("details").addEventListener("close", () => { if (place.vm) go({vm: ""}); });
  $("details").addEventListener("click", event => { if (event.target === $("details")) $("details").close(); });
}

// Show the VM that the address names, or none.
export function render() {
  if (place.vm !== open) {
    open = place.vm;
    buttons.calm();
    if (open) read();
    else $("details").close();
  }
  const vm = vms.get(open);
  if (vm) buttons.update(vm);
}

// Ask anew for what is shown, which has changed; or show it no more, if it is no more.
export function changed(name) {
  if (open && name === open && state.loaded && !vms.has(open)) go({vm: ""});
  else if (open && (!name || name === open)) read();
}

async function read() {
  const name = open;
  let vm;
  try {
    vm = await ask(`v1/vms/${encodeURIComponent(name)}`);
  } catch (error) {
    if (!$("details").open) go({vm: ""}, true);
    return say(error);
  }
  if (open !== name) return;
  show(vm);
  if (!$("details").open) $("details").showModal();
}

function show(vm) {
  set($("details-title"), `${vm.name} is ${vm.state}`);
  $("details-title").className = `state ${kindOf(vm)}`;
  const memory = vm.memory && `${gib(vm.memory)} of memory`;
  set($("details-facts"), [...few(vm.names, 10), ...few(vm.addresses, 10), memory, `stopped by ${vm.mode}`, vm.uuid].filter(Boolean).join(" · "));
  $("details-why").replaceChildren(...vm.why.map(text => make("p", "", text)));
  if ($("details-day").dataset.day !== vm.day) {
    $("details-day").dataset.day = vm.day;
    $("details-day").replaceChildren(strip(vm.day));
  }
  buttons.update(vm);
  const uses = Object.entries(vm.uses).map(([kind, seconds]) => row(USES[kind] || kind, ["", `${duration(seconds)} ago`]));
  if (vm.connections !== null) uses.push(row("open TCP connections", ["", String(vm.connections)]));
  fill("details-uses", uses, "Nothing is known of its use now.");
  fill("details-configuration", vm.configuration.map(one => row(one.key, one.value, one.from || "")), "");
  $("details-starts").replaceChildren(...vm.activations.map(one => {
    const item = make("li"), words = one.outcome === "up" ? one.how : one.outcome;
    const took = one.took === null ? "" : ` after ${ms(one.took)}`;
    item.append(time(one.began), make("span", "", `${words}${took}, for ${one.asker}${one.reason && one.reason !== one.how ? `: ${one.reason}` : ""}`));
    return item;
  }));
  if (!vm.activations.length) $("details-starts").append(make("li", "quiet", "None that Jitsu remembers."));
  set($("details-zone"), `Times are in ${zone}.`);
  $("details-decisions").replaceChildren(...vm.decisions.reverse().map(one => {
    const item = make("li");
    const what = one.kind === "state" ? one.state : DECISIONS[one.kind];
    const reason = one.reason === "asked for" ? "" : one.reason;
    item.append(time(one.at), make("span", "", [one.asker ? `${what} for ${one.asker}` : what, reason].filter(Boolean).join(": ")));
    return item;
  }));
  if (!vm.decisions.length) $("details-decisions").append(make("li", "quiet", "None since Jitsu began."));
}

function fill(id, made, none) {
  const table = $(id);
  table.hidden = !made.length;
  table.tBodies[0].replaceChildren(...made);
  const note = $(`${id}-none`);
  if (note) {
    note.hidden = made.length > 0;
    set(note, none);
  }
}
