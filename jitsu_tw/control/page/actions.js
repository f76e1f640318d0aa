// The buttons that start, stop, hold and release a VM. A stop is pressed twice.

import {button, kindOf, set} from "./view.js";
import {act, busy, mayAct, vms} from "./server.js";

const SURE = 4000;  // ms in which the second press must come

// Return the buttons for the VM that `name()` returns, and a function that brings them up to date.
export function actions(name) {
  const start = button("Start", () => act(name(), "start"), "Start it now");
  const stop = button("Stop", () => {
    if (stop.classList.contains("sure")) {
      calm();
      act(name(), "stop");
    } else {
      stop.classList.add("sure");
      set(stop, "Sure?");
      timer = setTimeout(calm, SURE);
    }
  }, "Stop it; the next question starts it again");
  const hold = button("Hold", () => {
    const held = vms.get(name()).held;
    if (held || !busy.has(name())) act(name(), held ? "release" : "hold");
  });
  let timer = 0;

  function calm() {
    clearTimeout(timer);
    stop.classList.remove("sure");
    set(stop, "Stop");
  }

  function update(vm) {
    const moving = kindOf(vm) === "moving", up = vm.state === "up";
    start.disabled = !mayAct() || up || moving || busy.has(vm.name);
    stop.disabled = !mayAct() || !(up || moving);
    hold.disabled = !mayAct();  // not while it is busy: a button that is disabled loses the keyboard's focus
    if (stop.disabled) calm();
    set(hold, vm.held ? "Release" : "Hold");
    hold.title = vm.held ? "Let it be stopped when nobody uses it" : "Start it and keep it up until it is released";
    hold.setAttribute("aria-pressed", String(vm.held));
  }

  return {buttons: [start, stop, hold], update, calm};
}
