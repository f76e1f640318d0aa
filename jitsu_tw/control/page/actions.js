// The buttons that start, stop, hold, release and forget a VM. Those that end it are pressed twice.

import {button, kindOf, set} from "./view.js";
import {act, busy, mayAct, vms} from "./server.js";

const SURE = 4000;  // ms in which the second press must come

// Return a button that does `what` to the VM that `name()` returns when it is pressed twice, and the function that takes the
// first press back.
function twice(label, what, name, title) {
  let timer = 0;
  const calm = () => {
    clearTimeout(timer);
    made.classList.remove("sure");
    set(made, label);
  };
  const made = button(label, () => {
    if (made.classList.contains("sure")) {
      calm();
      act(name(), what);
    } else {
      made.classList.add("sure");
      set(made, "Sure?");
      timer = setTimeout(calm, SURE);
    }
  }, title);
  made.classList.add(what);
  return [made, calm];
}

// Return the buttons for the VM that `name()` returns, a function that brings them up to date, and one that takes the first
// press of a button back. Where there is room for `forget`, it is among them for the VMs of templates.
export function actions(name, room = false) {
  const start = button("Start", () => act(name(), "start"), "Start it now");
  const [stop, calmStop] = twice("Stop", "stop", name, "Stop it; the next question starts it again");
  const hold = button("Hold", () => {
    const held = vms.get(name()).held;
    if (held || !busy.has(name())) act(name(), held ? "release" : "hold");
  });
  hold.classList.add("hold");
  const [forget, calmForget] = twice("Forget", "forget", name,
    "Remove it with its names, its address and its disk; the next question makes it anew");

  function calm() {
    calmStop();
    calmForget();
  }

  function update(vm) {
    const moving = kindOf(vm) === "moving", up = vm.state === "up";
    start.disabled = !mayAct() || up || moving || busy.has(vm.name);
    stop.disabled = !mayAct() || !(up || moving);
    hold.disabled = !mayAct();  // not while it is busy: a button that is disabled loses the keyboard's focus
    forget.disabled = !mayAct() || busy.has(vm.name);
    forget.hidden = vm.template === null;
    if (stop.disabled) calmStop();
    if (forget.disabled) calmForget();
    set(hold, vm.held ? "Release" : "Hold");
    hold.title = vm.held ? "Let it be stopped when nobody uses it" : "Start it and keep it up until it is released";
    hold.setAttribute("aria-pressed", String(vm.held));
  }

  return {buttons: room ? [start, stop, hold, forget] : [start, stop, hold], update, calm};
}
